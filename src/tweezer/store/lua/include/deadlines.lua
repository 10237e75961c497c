-- When a batch that has not started is late, and when it expires.
-- include: clock, rules

-- Enters the next deadline of a batch that has not started.
local function enter_deadline(b)
  if not b.rules then return end
  local rules = rules_of(b)
  local next = rules.expires
  if rules.late_ms and not rules.late then
    local late_at = b.not_before + rules.late_ms
    next = math.min(late_at, next or late_at)
  end
  if next then redis.call('ZADD', key(KEY.deadlines), int(next), b.id) end
end

-- Sets when a batch expires, counted from when it may start: now, or its start time.
local function set_deadlines(b)
  if not b.rules then return end
  local rules = rules_of(b)
  if rules.queue_ms then set_rule(b, 'expires', math.max(NOW, b.not_before) + rules.queue_ms) end
  enter_deadline(b)
end
