-- discard: removes a batch in any status, for operators who give up a batch that cannot be recorded. The next sweep cancels
-- the batches that wait for it.
--
-- KEYS[1] namespace
-- ARGV batch_id:str
-- Returns {'ok'} | {'version'}: of an unknown version | {'held'}: a lane works on it, unless its record is damaged
-- Events  none
-- include: clock, batch, ticket, counts, batch_keys

local b, problem = load_batch(batch_id)
if problem == 'version' then return { 'version' } end
if b then
  for n = 0, b.slots - 1 do
    if redis.call('ZSCORE', key(KEY.leases, b.device), ticket_name(b, int(n))) then return { 'held' } end
  end
  for n = 0, b.slots - 1 do
    local name = ticket_name(b, int(n))
    redis.call('ZREM', key(KEY.ready, b.device), name)
    redis.call('ZREM', key(KEY.due, b.device), name)
    redis.call('DEL', key(KEY.held, batch_id, int(n)))
  end
  count(b.device, 'pending', -b.pending)
  count(b.device, 'running', -b.running)
  count_use(b.project, 'jobs', -b.charged)
  count_use(b.project, 'bytes', -b.bytes)
  count_use(b.project, 'results', -b.results)
  save_counts()
end
unlink_batch(batch_id)
if not (b and is_over(b)) and redis.call('EXISTS', key(KEY.dependents, batch_id)) == 1 then
  redis.call('ZADD', key(KEY.releases), NOW_MS, batch_id .. ':')
end
redis.call('ZREM', key(KEY.idle), batch_id)
return { 'ok' }
