-- The batches that depend on one that has ended.
-- include: gate, conclude, issue, deadlines, cancel_all, dependency

-- Applies the ends of batches to those that wait for them, in the order of their creation: at most 50, and none after 10,000
-- jobs. The sweep handles the rest, and those that cannot be read for now.
local function handle_ends()
  local batches_left, jobs_left = 50, 10000

  -- Lets a batch start that waits for no more batches.
  local function release(b)
    redis.call('HDEL', key(KEY.batch, b.id), 'parents')
    b.waits = false
    touch(b)
    set_deadlines(b)
    if b.status ~= 'S' then issue_tickets(b) end
  end

  -- Applies an end to one batch that waits.
  local function apply(b, parent, ended)
    local parents = redis.call('HGET', key(KEY.batch, b.id), 'parents') or ''
    local at = string.find(parents, parent .. ':', 1, true)
    if not at then return end
    local when = string.sub(parents, at + 37, at + 37)
    local left = string.gsub(string.sub(parents, 1, at - 1) .. string.sub(parents, at + 39), ' $', '')
    if not is_satisfied(when, ended) then
      cancel_by_rule(b, 'C', dependency_fault(parent, ended))
    elseif left == '' then
      release(b)
    else
      put(b.changed, 'parents', left)
      touch(b)
    end
    conclude(b)
    save(b)
  end

  local at = 1
  while ended_batches[at] do -- a batch that is cancelled here is appended
    local parent, ended = ended_batches[at][1], ended_batches[at][2]
    local name, unreadable = key(KEY.dependents, parent), 0
    while not is_shut() and batches_left > 0 and jobs_left > 0 do
      local id = redis.call('ZRANGE', name, unreadable, unreadable)[1]
      if not id then break end
      batches_left = batches_left - 1
      local b, problem = load_batch(id)
      if problem then
        unreadable = unreadable + 1
      else
        redis.call('ZREM', name, id)
        if b and not is_over(b) then
          jobs_left = jobs_left - b.pending
          apply(b, parent, ended)
        end
      end
    end
    local left = redis.call('ZCARD', name)
    if left > 0 then
      local again = NOW + (left == unreadable and LEAVE_ALONE or 0)
      redis.call('ZADD', key(KEY.releases), int(again), parent .. ':' .. ended)
    end
    at = at + 1
  end
  ended_batches = {}
end
