-- forget: removes a terminal batch and its jobs from Redis.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3] least age of its end (ms)
-- Returns {'ok'} | {'unknown'} | {'live'} (not terminal, or not for long enough)
-- Events  none

local b = load_own_batch(ARGV[1], ARGV[2])
if not b then return { 'unknown' } end
if not is_over(b) or NOW - b.ended < tonumber(ARGV[3]) then return { 'live' } end
for n = 0, b.slots - 1 do
  redis.call('ZREM', key(KEY.leases, b.device), ticket_name(b, int(n)))
  redis.call('DEL', key(KEY.held, b.id, int(n)))
end
for _, pattern in ipairs({ KEY.batch, KEY.spec, KEY.state, KEY.result, KEY.fault, KEY.back, KEY.delay }) do
  redis.call('DEL', key(pattern, b.id))
end
return { 'ok' }
