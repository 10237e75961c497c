-- forget_specs: an operator's specs of a device are no more; its workers announce their own with their next heartbeat.
--
-- KEYS[1] namespace
-- ARGV device:str
-- Returns {'ok'} | {'none'}: no operator gave any | {'unknown'}
-- Events  none
-- include: keys, maxmemory, generated/specs

exempt_from_maxmemory()
local record = key(KEY.device, device)
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
if redis.call('HGET', record, 'specs_by') ~= 'operator' then return { 'none' } end
redis.call('HDEL', record, unpack(SPECS_FIELDS))
return { 'ok' }
