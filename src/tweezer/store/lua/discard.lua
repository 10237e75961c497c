-- discard: removes a batch whatever its status, for an operator who gives up what cannot be recorded.
--
-- KEYS[1] namespace
-- ARGV[1] batch id
-- Returns {'ok'} | {'version'} (of a version that this Tweezer does not know) | {'held'} (a lane works on it)
-- Events  none

local id = ARGV[1]
local b, problem = load_batch(id)
if problem then return { 'version' } end
if b and b.device then
  for n = 0, b.slots - 1 do
    if redis.call('ZSCORE', key(KEY.leases, b.device), ticket_name(b, int(n))) then return { 'held' } end
  end
  for n = 0, b.slots - 1 do
    local name = ticket_name(b, int(n))
    redis.call('ZREM', key(KEY.ready, b.device), name)
    redis.call('ZREM', key(KEY.due, b.device), name)
    redis.call('DEL', key(KEY.held, id, int(n)))
  end
  count(b.device, 'pending', -b.pending)
  count(b.device, 'running', -b.running)
  save_counts()
end
local patterns = { KEY.batch, KEY.spec, KEY.state, KEY.result, KEY.fault, KEY.back, KEY.delay, KEY.remote, KEY.call }
for _, pattern in ipairs(patterns) do
  redis.call('UNLINK', key(pattern, id))
end
redis.call('ZREM', key(KEY.ended), id)
redis.call('ZREM', key(KEY.idle), id)
return { 'ok' }
