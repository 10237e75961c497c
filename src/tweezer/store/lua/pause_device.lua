-- pause_device: no ticket of the device is granted until it is resumed; running jobs finish.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] the reason, for people
-- Returns {'ok'} | {'unknown'}
-- Events  none

exempt_from_maxmemory()
local device = key(KEY.device, ARGV[1])
if redis.call('EXISTS', device) == 0 then return { 'unknown' } end
redis.call('HSET', device, 'paused', ARGV[2], 'paused_at', NOW_MS)
return { 'ok' }
