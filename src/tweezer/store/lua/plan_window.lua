-- plan_window: plans maintenance: within the window a device hands out nothing, and before it nothing that would not end
-- in time.
--
-- KEYS[1] namespace
-- ARGV device:str   window_id:str   begins_ms:int since 1970   ends_ms:int
--     data:bytes of the notice at its begin (JSON)   windows_max:int of a device
-- Returns {'ok'} | {'unknown'}: no such device | {'past'}: its end is in the past | {'many'} | {'overlaps', begin, end}:
--     of another window
-- Events  the notice device.paused if it has already begun
-- include: maintenance, maxmemory

exempt_from_maxmemory()
local windows = key(KEY.windows, device)
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown' } end
if redis.call('HEXISTS', windows, window_id) == 1 then return { 'ok' } end
if ends_ms <= NOW then return { 'past' } end
look_out(device)
local all = redis.call('HVALS', windows)
if #all >= windows_max then return { 'many' } end
for _, other in ipairs(all) do
  local from, to = string.match(other, '^(%d+) (%d+)')
  if begins_ms < tonumber(to) and tonumber(from) < ends_ms then return { 'overlaps', from, to } end
end
redis.call('HSET', windows, window_id, table.concat({ int(begins_ms), int(ends_ms), window_id, data }, ' '))
look_out(device)
keep_to_plan(device)
return { 'ok' }
