-- plan_window: from one time to another a device hands out nothing, and before it nothing that would not end in time.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] id of the window   [3] its begin (ms since 1970)   [4] its end
--     [5] data of the notice at its begin (JSON)   [6] most windows of a device
-- Returns {'ok'} | {'unknown'}: no such device | {'past'}: its end is not to come | {'many'} | {'overlaps', begin, end}:
--     of another one
-- Events  the notice device.paused when it has begun

exempt_from_maxmemory()
local device, begins, ends = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local windows = key(KEY.windows, device)
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown' } end
if redis.call('HEXISTS', windows, ARGV[2]) == 1 then return { 'ok' } end
if ends <= NOW then return { 'past' } end
look_out(device)
local all = redis.call('HVALS', windows)
if #all >= tonumber(ARGV[6]) then return { 'many' } end
for _, other in ipairs(all) do
  local from, to = string.match(other, '^(%d+) (%d+)')
  if begins < tonumber(to) and tonumber(from) < ends then return { 'overlaps', from, to } end
end
redis.call('HSET', windows, ARGV[2], table.concat({ int(begins), int(ends), ARGV[2], ARGV[5] }, ' '))
look_out(device)
keep_to_plan(device)
return { 'ok' }
