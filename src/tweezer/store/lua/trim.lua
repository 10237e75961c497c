-- trim: trims events that all readers have read: those before the given position and, for each group of the stream, before
-- its oldest unacknowledged entry or, without one, before the last delivered one. The entry at the position is kept: it
-- shows the recorder that Redis has lost nothing.
--
-- KEYS[1] namespace
-- ARGV recorded:str, id of the last recorded entry
-- Returns {'ok', number of trimmed entries}
-- Events  none
-- include: streams, maxmemory

exempt_from_maxmemory()
local events, least = key(KEY.events), recorded
if redis.call('EXISTS', events) == 0 then return { 'ok', 0 } end
for _, group in ipairs(group_positions()) do
  if is_earlier(group.position, least) then least = group.position end
end
redis.call('SET', key(KEY.ledger), least)
return { 'ok', redis.call('XTRIM', events, 'MINID', least) }
