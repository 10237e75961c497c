-- The reader groups of the stream of events.
-- include: keys

-- Whether an entry id is before another one.
local function is_earlier(a, b)
  local a_ms, a_number = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_number = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_number) < tonumber(b_number))
end

-- Returns for each reader group the id of its oldest unacknowledged entry (is_pending) or, without one, of the last
-- delivered entry.
local function group_positions()
  local events, groups = key(KEY.events), {}
  if redis.call('EXISTS', events) == 0 then return groups end
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', events)) do
    local row = {}
    for at = 1, #found, 2 do row[found[at]] = found[at + 1] end
    local pending = redis.call('XPENDING', events, row.name)
    local is_pending = tonumber(pending[1]) > 0
    groups[#groups + 1] = { is_pending = is_pending, position = is_pending and pending[2] or row['last-delivered-id'] }
  end
  return groups
end
