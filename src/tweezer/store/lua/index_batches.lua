-- index_batches: adds batches to the index of their project, which releases before the index left without them.
--
-- KEYS[1] namespace
-- ARGV batches:str..., ids
-- Returns {'ok'}
-- Events  none
-- include: batch, maxmemory

exempt_from_maxmemory()
for at = batches_first, batches_last do
  local b = load_batch(ARGV[at])
  if b then redis.call('ZADD', key(KEY.batches, b.project), 'NX', int(tonumber(b.created) / 1000), b.id) end
end
return { 'ok' }
