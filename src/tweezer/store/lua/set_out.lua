-- set_out: records that the job of an intent is being submitted. From now on it may have been submitted, unless the intent
-- is withdrawn.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   name:str of the intent
-- Returns {'ok'} | {'stale'}: the ticket or the intent was replaced, or the intent may be older than writes that Redis lost
-- Events  none
-- Gate    open or shut: facts about jobs on a machine must not be lost
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
