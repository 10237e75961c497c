-- include: ticket, device, queue, bell, parents

-- Issues tickets up to min(waiting jobs, live lanes), one on an exclusive device, and rings the bell; none for a batch that
-- waits for others. A ticket that waits for a retry, or keeps a machine for its batch without a holder, is readied, because
-- it now has jobs to run; one that waits after a failure is not.
local function issue_tickets(b)
  if waits_for_others(b) then return end
  local retries_only = waiting(b) > 0 and b.failures == 0 and NOW >= b.not_before
  local want = math.min(waiting(b) + b.delayed, math.max(device_row(b.device).lanes, 1))
  if b.exclusive == 1 then want = math.min(want, 1) end
  for n = 0, want - 1 do
    local t = { n = int(n), name = ticket_name(b, int(n)) }
    local record = n < b.slots and redis.call('HGET', key(KEY.batch, b.id), 't:' .. t.n)
    if not record then
      queue_ticket(b, t, b.not_before)
    elseif b.reserved > 0 and string.sub(record, 1, 2) == '0 ' then
      redis.call('ZADD', key(KEY.leases, b.device), 'XX', NOW_MS, t.name) -- the next take readies it
    elseif retries_only and redis.call('ZREM', key(KEY.due, b.device), t.name) == 1 then
      queue_ticket(b, t)
    end
  end
  b.slots = math.max(b.slots, want)
  if want > 0 then ring(b.device) end
end
