-- resume_device: ends a pause: the device grants tickets again, unless it is under maintenance or down.
--
-- KEYS[1] namespace
-- ARGV device:str
-- Returns {'ok'} | {'unknown'}
-- Events  the notice device.up, if it was paused and nothing else keeps it from running
-- include: notices, bell, maxmemory

exempt_from_maxmemory()
local record = key(KEY.device, device)
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
if redis.call('HDEL', record, 'paused', 'paused_at', 'paused_until') > 0 then notify_up(device) end
ring(device)
return { 'ok' }
