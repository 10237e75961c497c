-- set_out: the job of an intent is submitted now. From here on it may have been, until somebody says that it was not.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] index   [4] name of the intent
-- Returns {'ok'} | {'stale'}: the ticket or the intent is another's, or the intent may be older than what Redis lost
-- Events  none
-- Gate    open or shut: what a machine has, or will not get, is a fact that must not be lost

exempt_from_maxmemory()
local id, n = split_ticket(ARGV[1])
local b, t = load_batch(id, n)
if not b or not t or t.token ~= ARGV[2] then return { 'stale' } end
local remote, index = key(KEY.remote, id), ARGV[3]
local at, own, after, uid = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) (%S+)')
if own ~= ARGV[4] or came_back() * 1000 >= tonumber(at) then return { 'stale' } end
redis.call('HSET', remote, index, table.concat({ at, own, after, uid, '1' }, ' '))
return { 'ok' }
