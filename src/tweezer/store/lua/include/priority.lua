-- Changes of a batch's priority.
-- include: ticket, queue, generated/record

-- Gives a batch another priority, and its ready tickets the rank that they would have with it. A ticket that precedes all
-- others stays where it is.
local function change_priority(b, to)
  local ready = key(KEY.ready, b.device)
  for n = 0, b.slots - 1 do
    local name = ticket_name(b, int(n))
    local score = tonumber(redis.call('ZSCORE', ready, name) or BEFORE_ALL)
    if score > BEFORE_ALL then redis.call('ZADD', ready, int(score - PENALTY[b.priority] + PENALTY[to]), name) end
  end
  b.priority = to
  if not b.is_older then put(b.changed, 'made', pack_made(b)) end -- else `save` writes it
end
