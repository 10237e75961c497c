-- pause_device: pauses a device: it grants no tickets until an operator resumes it or the given time; running jobs finish.
-- Pausing it again changes the reason and the time.
--
-- KEYS[1] namespace
-- ARGV device:str   reason:str for people   until_ms:int since 1970, 0: until an operator resumes it
--     data:bytes of the notice (JSON)
-- Returns {'ok'} | {'unknown'} | {'past'}: the time is in the past
-- Events  the notice device.paused, unless the same pause was already in effect
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
