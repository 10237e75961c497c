-- withdraw_intent: whoever said that it would submit a job surely has not, and will not; also when its ticket is lost.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] index   [3] name of the intent: a call that arrives late takes no other one back
-- Returns {'ok'} | {'unknown'}: there is no such intent, or the machine has the job
-- Events  none
-- Gate    open or shut: what a machine has, or will not get, is a fact that must not be lost

exempt_from_maxmemory()
local remote, index = key(KEY.remote, ARGV[1]), ARGV[2]
local _, own, _, uid = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) (%S+)')
if own ~= ARGV[3] or uid ~= '-' then return { 'unknown' } end
redis.call('HDEL', remote, index)
return { 'ok' }
