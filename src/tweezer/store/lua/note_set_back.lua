-- note_set_back: records that a machine's job ids restarted, as its last known job shows. `since` replaces all that was
-- known about the order of its jobs, also for jobs that have waited since before a restart of Redis.
--
-- KEYS[1] namespace
-- ARGV device:str   last_uid:str, the known job that revealed the set-back, or '-'   since:digits, a job on the machine
--     that is older than any job that Tweezer submitted after the set-back
-- Returns {'ok'} | {'known'}: it was recorded before
-- Events  none
-- Gate    open or shut: facts about jobs on a machine must not be lost
-- include: clock, returns, maxmemory

exempt_from_maxmemory()
local record = key(KEY.device, device)
if (redis.call('HGET', record, 'last_uid') or '-') ~= last_uid then return { 'known' } end
local returns = string.gsub(returns_of(record), ':%S+', ':' .. since)
if returns ~= '' then redis.call('HSET', record, 'returns', returns) end
redis.call('HDEL', record, 'last_job')
redis.call('HSET', record, 'last_uid', since, 'set_back', table.concat({ NOW_US, last_uid, since }, ' '))
return { 'ok' }
