-- trim: drops events that everybody has read: those before the given position and, for each group of the stream,
-- before its oldest entry that is not acknowledged or, with none, before the last one delivered. The entry at the
-- position stays: by it the recorder sees that Redis has lost nothing.
--
-- KEYS[1] namespace
-- ARGV[1] id of the last entry that is recorded
-- Returns {'ok', entries dropped}
-- Events  none

exempt_from_maxmemory()
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function earlier(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local events, least = key(KEY.events), ARGV[1]
if redis.call('EXISTS', events) == 0 then return { 'ok', 0 } end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', events)) do
  local row = {}
  for at = 1, #group, 2 do row[group[at]] = group[at + 1] end
  local pending = redis.call('XPENDING', events, row.name)
  local position = tonumber(pending[1]) > 0 and pending[2] or row['last-delivered-id']
  if earlier(position, least) then least = position end
end
redis.call('SET', key(KEY.ledger), least)
return { 'ok', redis.call('XTRIM', events, 'MINID', least) }
