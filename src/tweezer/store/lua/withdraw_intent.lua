-- withdraw_intent: whoever said that it would submit a job surely has not, and will not; also when its ticket is lost.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   index:digits   name:str of the intent: a call that arrives late takes no other one back
-- Returns {'ok'} | {'unknown'}: there is no such intent, or the machine has the job
-- Events  none
-- Gate    open or shut: what a machine has, or will not get, is a fact that must not be lost
-- include: keys, maxmemory

exempt_from_maxmemory()
local remote = key(KEY.remote, batch_id)
local _, own, _, uid = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) (%S+)')
if own ~= name or uid ~= '-' then return { 'unknown' } end
redis.call('HDEL', remote, index)
return { 'ok' }
