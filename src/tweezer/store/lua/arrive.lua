-- arrive: said by every new connection, before anything else, with the server that it reached. One that was not in use
-- before may lack the last writes, which the ledger has: it shuts the gate until those are put back.
--
-- KEYS[1] namespace
-- ARGV[1] run id of the server
-- Returns {'same'} | {'new'} (and there is no ledger) | {'shut'}
-- Events  none

local before = redis.call('GET', key(KEY.server))
if before and string.match(before, '^%d+ (.*)$') == ARGV[1] then return { 'same' } end
exempt_from_maxmemory()
redis.call('SET', key(KEY.server), (before and int(NOW + 1) or '0') .. ' ' .. ARGV[1])
local wait = setting('restore_wait')
if wait == 0 or redis.call('EXISTS', key(KEY.ledger)) == 0 then return { 'new' } end
redis.call('SET', key(KEY.gate), NOW_US, 'PX', int(wait))
return { 'shut' }
