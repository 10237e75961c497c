-- resume_device: the device's tickets are granted again.
--
-- KEYS[1] namespace
-- ARGV[1] device
-- Returns {'ok'} | {'unknown'}
-- Events  none

local device = key(KEY.device, ARGV[1])
if redis.call('EXISTS', device) == 0 then return { 'unknown' } end
redis.call('HDEL', device, 'paused', 'paused_at')
ring(ARGV[1])
return { 'ok' }
