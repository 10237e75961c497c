-- Takes jobs back from a ticket, and ends the ticket or queues it again.
-- include: held, intent, job_ends, conclude, queue, device, generated/attempts

-- Ends a ticket. No other code ends one.
local function retire(b, t)
  stop_idling(b)
  settle_service(b, t)
  redis.call('ZREM', key(KEY.leases, b.device), t.name)
  redis.call('HDEL', key(KEY.batch, b.id), 't:' .. t.n)
  if tonumber(t.n) == b.slots - 1 then b.slots = b.slots - 1 end
  if b.exclusive == 1 then ring(b.device) end
end

local KEPT = 5000 -- how often (ms) an idle batch that keeps its machine without a holder is checked

-- Ends the lease of a ticket and queues it again, at its new rank or until it is due.
local function requeue_ticket(b, t, due)
  settle_service(b, t)
  local had_lease = redis.call('ZREM', key(KEY.leases, b.device), t.name) == 1
  t.had_machine = had_lease and b.exclusive == 1 and not due
  queue_ticket(b, t, due)
  ring(b.device)
end

-- Empties the held set of a ticket. why: 'lost' (its lease expired), 'fail' with its fault, 'drain', or 'stop', which keeps
-- its running jobs. A job on a machine stays RUNNING, and is handed out next.
local function take_back(b, t, why, fault)
  local held = key(KEY.held, b.id, t.n)
  local indices, kept = held_indices(b, t), {}
  redis.call('DEL', held)
  if #indices == 0 then return end
  local raw, back = {}, {}
  for first = 1, #indices, 1000 do
    for _, state in ipairs(redis.call('HMGET', key(KEY.state, b.id),
      unpack(indices, first, math.min(first + 999, #indices)))) do raw[#raw + 1] = state end
  end
  for i, index in ipairs(indices) do
    local st = read_state(raw[i])
    if st[S.status] == 'P' then
      back[#back + 1] = index
    elseif st[S.status] == 'R' and why == 'stop' then
      kept[#kept + 1] = index
    elseif st[S.status] == 'R' and is_remote(b, index) then
      redis.call('LPUSH', key(KEY.back, b.id), index)
      b.back = b.back + 1
    elseif st[S.status] == 'R' then
      local lost = number_of(st, S.lost) + (why == 'lost' and 1 or 0)
      if why == 'lost' then st[S.lost] = int(lost) end
      if st[S.cancel] ~= '-' then
        end_job(b, index, st, 'C')
        if b.exclusive == 1 then st[S.outcome] = 'prevented' end -- it never reached the machine
      elseif lost >= LOST_MAX then
        end_job(b, index, st, 'E')
        note_fault(b, index, LOST_FAULT)
      else
        if why == 'drain' then st[S.attempt] = int(number_of(st, S.attempt) - 1) end
        requeue_job(b, index, st, why, fault)
        back[#back + 1] = index
      end
      write_state(b, index, st)
    end
  end
  each_thousand('SADD', held, kept)
  if #back > 0 then come_back(b, back) end
end

-- Whether an open batch without work keeps its machine even without a holder, because jobs may be added.
local function keeps_machine(b, t)
  return b.exclusive == 1 and b.open == 1 and not is_over(b) and b.status ~= 'S' and waiting(b) + b.delayed == 0
    and not is_withheld(b.device)
    and (b.reserved > 0 or redis.call('ZSCORE', key(KEY.leases, b.device), t.name))
end

-- Queues a ticket again if its batch has work for it, else retires it. A ticket without a holder keeps the machine for its
-- batch until the batch is closed, paused or timed out, or an operator withholds the machine. Returns 'yield' (ready
-- again), 'parked' (until a retry is due or jobs are added) or 'retired'.
local function requeue_or_retire(b, t, due)
  if keeps_machine(b, t) then
    if b.reserved == 0 then b.reserved = NOW end
    requeue_ticket(b, t, NOW + KEPT)
    return 'parked'
  end
  if due or is_paused(b.device) then stop_idling(b) end
  if is_over(b) or b.status == 'S' and not has_remote(b) or waiting(b) + b.delayed == 0 then
    retire(b, t)
    return 'retired'
  end
  local word = 'yield'
  if waiting(b) == 0 then
    local next = redis.call('ZRANGE', key(KEY.delay, b.id), 0, 0, 'WITHSCORES')
    due, word = math.max(due or 0, tonumber(next[2] or 0)), 'parked'
  end
  requeue_ticket(b, t, due)
  return word
end
