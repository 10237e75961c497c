-- withdraw_intent: withdraws an intent whose author has not submitted the job and will not, even if its ticket is lost.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   index:digits   name:str of the intent, so that a late call does not withdraw another one
-- Returns {'ok'} | {'unknown'}: there is no such intent, or the machine has the job
-- Events  none
-- Gate    open or shut: facts about jobs on a machine must not be lost
-- include: keys, maxmemory

exempt_from_maxmemory()
local remote = key(KEY.remote, batch_id)
local _, own, _, uid = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) (%S+)')
if own ~= name or uid ~= '-' then return { 'unknown' } end
redis.call('HDEL', remote, index)
return { 'ok' }
