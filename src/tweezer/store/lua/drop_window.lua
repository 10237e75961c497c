-- drop_window: removes planned maintenance, or ends it if it is in progress.
--
-- KEYS[1] namespace
-- ARGV device:str   window_id:str
-- Returns {'ok'} | {'unknown'}: no such device | {'none'}: no such window
-- Events  the notice device.up, if it was in progress and nothing else keeps the device from running
-- include: maintenance, maxmemory

exempt_from_maxmemory()
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown' } end
if redis.call('HDEL', key(KEY.windows, device), window_id) == 0 then return { 'none' } end
look_out(device)
keep_to_plan(device)
ring(device)
return { 'ok' }
