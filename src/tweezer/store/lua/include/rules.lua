-- The rules of a batch: its field `rules` has them, and what was used of them, as a JSON object:
--   failures, on_failures: at how many failed jobs it is paused or cancelled; failed: jobs that failed before the count
--     started anew
--   retries: limit of all retries; retried: their number
--   queue_ms: how long it may wait; expires: until when (ms since 1970)
--   late_ms: how long after its start time it is late; late: 1 once that was reported

-- Returns the rules of a batch by name; those of a batch without any are empty.
local function rules_of(b)
  if not b.rules_by_name then
    local is_read, found = pcall(cjson.decode, b.rules or '{}')
    b.rules_by_name = is_read and type(found) == 'table' and found or {}
  end
  return b.rules_by_name
end

-- Changes a value, which `save` then writes.
local function set_rule(b, name, value)
  rules_of(b)[name] = value
  b.has_new_rules = true
end

-- Counts a retry and returns true if the batch may have another one.
local function use_retry(b)
  local rules = b.rules and rules_of(b)
  if not rules or not rules.retries then return true end
  local retried = rules.retried or 0
  if retried >= rules.retries then return false end
  set_rule(b, 'retried', retried + 1)
  return true
end
