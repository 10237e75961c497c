-- The end of batches.
-- include: batch, ticket, changes, fair_share, bell

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
end

-- A closed batch without pending or running jobs becomes terminal. An open batch without work gets a deadline. Must be
-- called after every change that may affect this.
local function conclude(b)
  if is_over(b) then return end
  local busy = b.pending > 0 or b.running > 0
  if b.open == 1 then
    if busy or b.status == 'S' then
      redis.call('ZREM', key(KEY.idle), b.id)
    else
      redis.call('ZADD', key(KEY.idle), 'NX', int(NOW + b.idle), b.id)
    end
  elseif not busy then
    move_batch(b, b.fate or 'D')
    b.ended = NOW
    withdraw(b)
  end
end

-- Writes what the script changed in devices and projects.
local function save_totals()
  save_counts()
  save_shares()
end

-- The last step of every script that changes a batch.
local function finish(b)
  conclude(b)
  save(b)
  save_totals()
end
