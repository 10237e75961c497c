-- forget_specs: removes an operator's specs of a device; its workers announce theirs with their next heartbeat.
--
-- KEYS[1] namespace
-- ARGV device:str
-- Returns {'ok'} | {'none'}: no operator has set any | {'unknown'}
-- Events  none
-- include: keys, maxmemory, generated/specs

exempt_from_maxmemory()
local record = key(KEY.device, device)
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
if redis.call('HGET', record, 'specs_by') ~= 'operator' then return { 'none' } end
redis.call('HDEL', record, unpack(SPECS_FIELDS))
return { 'ok' }
