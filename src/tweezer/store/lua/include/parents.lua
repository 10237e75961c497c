-- Batches that wait for others. The field `parents` of a batch has those that it still waits for, separated by spaces:
-- the id, a colon and the letter of model.rules.When.
-- include: keys

-- Whether a batch waits for others. One that has started does not.
local function waits_for_others(b)
  if b.waits == nil then
    b.waits = b.started == 0 and redis.call('HEXISTS', key(KEY.batch, b.id), 'parents') == 1
  end
  return b.waits
end

-- Removes a batch from the dependents of those that it waits for.
local function leave_parents(id)
  local parents = redis.call('HGET', key(KEY.batch, id), 'parents')
  for parent in string.gmatch(parents or '', '(%S+):%a') do redis.call('ZREM', key(KEY.dependents, parent), id) end
end
