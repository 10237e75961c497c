-- pause_device: no ticket of the device is granted until it is resumed, by an operator or when its time has come; running
-- jobs finish. Pausing it again changes why and until when.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] the reason, for people   [3] until when (ms since 1970), 0: until an operator resumes it
--     [4] data of the notice (JSON)
-- Returns {'ok'} | {'unknown'} | {'past'}: that is not to come
-- Events  the notice device.paused, unless it was paused like this before

exempt_from_maxmemory()
local device, ends = key(KEY.device, ARGV[1]), tonumber(ARGV[3])
if redis.call('EXISTS', device) == 0 then return { 'unknown' } end
if ends > 0 and ends <= NOW then return { 'past' } end
local before = redis.call('HMGET', device, 'paused', 'paused_until')
redis.call('HSET', device, 'paused', ARGV[2], 'paused_at', NOW_MS)
if ends > 0 then
  redis.call('HSET', device, 'paused_until', int(ends))
else
  redis.call('HDEL', device, 'paused_until')
end
local same = before[1] == ARGV[2] and tonumber(before[2] or 0) == ends
if not same then notify('device.paused', ARGV[1], ARGV[4]) end
return { 'ok' }
