-- drop_window: takes planned maintenance back, or ends it where it is under way.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] id of the window
-- Returns {'ok'} | {'unknown'}: no such device | {'none'}: no such window
-- Events  the notice device.up, if it was under way and nothing else holds the device

exempt_from_maxmemory()
local device = ARGV[1]
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown' } end
if redis.call('HDEL', key(KEY.windows, device), ARGV[2]) == 0 then return { 'none' } end
look_out(device)
keep_to_plan(device)
ring(device)
return { 'ok' }
