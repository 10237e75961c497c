-- resume_device: the device's tickets are granted again, unless it is under maintenance, or down.
--
-- KEYS[1] namespace
-- ARGV[1] device
-- Returns {'ok'} | {'unknown'}
-- Events  the notice device.up, if it was paused and nothing else holds it

exempt_from_maxmemory()
local device = key(KEY.device, ARGV[1])
if redis.call('EXISTS', device) == 0 then return { 'unknown' } end
if redis.call('HDEL', device, 'paused', 'paused_at', 'paused_until') > 0 then notify_up(ARGV[1]) end
ring(ARGV[1])
return { 'ok' }
