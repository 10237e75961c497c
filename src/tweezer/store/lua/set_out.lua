-- set_out: the job of an intent is submitted now. From here on it may have been, until somebody says that it was not.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   name:str of the intent
-- Returns {'ok'} | {'stale'}: the ticket or the intent is another's, or the intent may be older than what Redis lost
-- Events  none
-- Gate    open or shut: what a machine has, or will not get, is a fact that must not be lost
-- include: batch, ticket, restart, maxmemory

exempt_from_maxmemory()
local id, n = split_ticket(ticket)
local b, t = load_batch(id, n)
if not b or not t or t.token ~= token then return { 'stale' } end
local remote = key(KEY.remote, id)
local at, own, after, uid = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) (%S+)')
if own ~= name or came_back() * 1000 >= tonumber(at) then return { 'stale' } end
redis.call('HSET', remote, index, table.concat({ at, own, after, uid, '1' }, ' '))
return { 'ok' }
