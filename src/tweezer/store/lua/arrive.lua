-- arrive: every new connection first reports the server that it reached. A server that was not in use before may lack the
-- last writes, which the ledger has: the gate is shut until they are restored.
--
-- KEYS[1] namespace
-- ARGV run_id:str of the server
-- Returns {'same'} | {'new'}: without a ledger | {'shut'}
-- Events  none
-- include: clock, maxmemory, settings

local before = redis.call('GET', key(KEY.server))
if before and string.match(before, '^%d+ (.*)$') == run_id then return { 'same' } end
exempt_from_maxmemory()
redis.call('SET', key(KEY.server), (before and int(NOW + 1) or '0') .. ' ' .. run_id)
local wait = setting('restore_wait')
if wait == 0 or redis.call('EXISTS', key(KEY.ledger)) == 0 then return { 'new' } end
redis.call('SET', key(KEY.gate), NOW_US, 'PX', int(wait))
return { 'shut' }
