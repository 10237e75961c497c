-- The end of batches.
-- include: batch, ticket, changes, fair_share, bell, parents

-- The batches with dependents that this script ended: { id, end } each. An end is what `end_of` returns, or '' for a batch that
-- was discarded.
local ended_batches = {}

-- Returns how a batch ended: the letter of its status, followed by F if a job failed.
local function end_of(b) return b.status .. (b.error > 0 and 'F' or '') end

-- Ends a period in which the batch held its device without work.
local function stop_idling(b)
  if b.reserved > 0 then b.idled, b.reserved = b.idled + NOW - b.reserved, 0 end
end

-- Removes an ended batch from all queues and adds it to those that may be forgotten.
local function withdraw(b)
  redis.call('ZADD', key(KEY.ended), int(b.ended), b.id)
  if b.back + b.delayed > 0 then redis.call('DEL', key(KEY.back, b.id), key(KEY.delay, b.id)) end
  b.back, b.delayed, b.bytes = 0, 0, 0
  if b.was_open then redis.call('ZREM', key(KEY.idle), b.id) end
  for n = 0, b.slots - 1 do
    local name = ticket_name(b, int(n))
    local was_ready = redis.call('ZREM', key(KEY.ready, b.device), name)
    if was_ready == 1 then settle_service(b, { used = 0 }) end
    redis.call('ZREM', key(KEY.due, b.device), name)
    if b.exclusive == 1 and redis.call('ZREM', key(KEY.leases, b.device), name) == 1 then
      redis.call('HDEL', key(KEY.batch, b.id), 't:' .. int(n))
      ring(b.device)
    end
  end
  if b.rules and b.started == 0 then redis.call('ZREM', key(KEY.deadlines), b.id) end
  stop_idling(b)
  if waits_for_others(b) then
    leave_parents(b.id)
    redis.call('HDEL', key(KEY.batch, b.id), 'parents')
    b.waits = false
  end
  if redis.call('EXISTS', key(KEY.dependents, b.id)) == 1 then ended_batches[#ended_batches + 1] = { b.id, end_of(b) } end
end

-- A closed batch without pending or running jobs becomes terminal, unless it waits for others and was not cancelled. An
-- open batch without work gets a deadline, unless it waits for others. Must be called after every change that may affect
-- this.
local function conclude(b)
  if is_over(b) then return end
  local busy = b.pending > 0 or b.running > 0
  if b.open == 1 then
    if busy or b.status == 'S' or waits_for_others(b) then
      redis.call('ZREM', key(KEY.idle), b.id)
    else
      redis.call('ZADD', key(KEY.idle), 'NX', int(NOW + b.idle), b.id)
    end
  elseif not busy and (b.fate or not waits_for_others(b)) then
    move_batch(b, b.fate or 'D')
    b.ended = NOW
    withdraw(b)
  end
end
