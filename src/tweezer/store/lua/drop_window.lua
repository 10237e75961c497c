-- drop_window: takes planned maintenance back, or ends it where it is under way.
--
-- KEYS[1] namespace
-- ARGV device:str   window_id:str
-- Returns {'ok'} | {'unknown'}: no such device | {'none'}: no such window
-- Events  the notice device.up, if it was under way and nothing else holds the device
-- include: maintenance, maxmemory

exempt_from_maxmemory()
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown' } end
if redis.call('HDEL', key(KEY.windows, device), window_id) == 0 then return { 'none' } end
look_out(device)
keep_to_plan(device)
ring(device)
return { 'ok' }
