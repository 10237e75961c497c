-- include: parents

-- Removes all keys of a batch, except the sets that its tickets hold and that of its dependents.
local function unlink_batch(id)
  local project = redis.call('HGET', key(KEY.batch, id), 'project')
  if project then redis.call('ZREM', key(KEY.batches, project), id) end
  leave_parents(id)
  local patterns = { KEY.batch, KEY.spec, KEY.state, KEY.result, KEY.fault, KEY.back, KEY.delay, KEY.remote, KEY.call }
  for _, pattern in ipairs(patterns) do redis.call('UNLINK', key(pattern, id)) end
  redis.call('ZREM', key(KEY.ended), id)
  redis.call('ZREM', key(KEY.deadlines), id)
end
