-- forget: removes a terminal batch and its jobs from Redis.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3] least age of its end (ms)   [4] idempotency key or ''
--     [5] digest of the call
-- Returns {'ok'} | {'repeated'} | {'conflict'} | {'unknown'} | {'live'} (not terminal, or not for long enough)
-- Events  none

local before = answered(ARGV[2], ARGV[4], ARGV[5])
if before then return before end
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
remember(ARGV[2], ARGV[4], ARGV[5], '')
return { 'ok' }
