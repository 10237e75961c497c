-- pause_device: no ticket of the device is granted until it is resumed, by an operator or when its time has come; running
-- jobs finish. Pausing it again changes why and until when.
--
-- KEYS[1] namespace
-- ARGV device:str   reason:str for people   until_ms:int since 1970, 0: until an operator resumes it
--     data:bytes of the notice (JSON)
-- Returns {'ok'} | {'unknown'} | {'past'}: that is not to come
-- Events  the notice device.paused, unless it was paused like this before
-- include: notices, maxmemory

exempt_from_maxmemory()
local record = key(KEY.device, device)
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
if until_ms > 0 and until_ms <= NOW then return { 'past' } end
local before = redis.call('HMGET', record, 'paused', 'paused_until')
redis.call('HSET', record, 'paused', reason, 'paused_at', NOW_MS)
if until_ms > 0 then
  redis.call('HSET', record, 'paused_until', int(until_ms))
else
  redis.call('HDEL', record, 'paused_until')
end
local same = before[1] == reason and tonumber(before[2] or 0) == until_ms
if not same then notify('device.paused', device, data) end
return { 'ok' }
