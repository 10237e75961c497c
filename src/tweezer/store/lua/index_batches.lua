-- index_batches: adds batches to the index of their project, which releases before the index left without them.
--
-- KEYS[1] namespace
-- ARGV batches:str..., ids
-- Returns {'ok'}
-- Events  none
-- Gate    open or shut: when a batch was created never changes
-- include: batch, maxmemory

exempt_from_maxmemory()
for at = batches_first, batches_last do
  local id = ARGV[at]
  local project = redis.call('HGET', key(KEY.batch, id), 'project')
  if project and not redis.call('ZSCORE', key(KEY.batches, project), id) then
    local b = load_batch(id)
    if b then redis.call('ZADD', key(KEY.batches, project), int(tonumber(b.created) / 1000), id) end
  end
end
return { 'ok' }
