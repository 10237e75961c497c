-- note_set_back: the job ids of a machine began anew, as its last known job shows. What was known of the order of its jobs
-- is replaced by `since`, also for jobs that wait since Redis came back.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] the last known job, by which the set-back was noticed, or '-'   [3] since: a job of the machine that
--     is older than any of ours submitted after the set-back
-- Returns {'ok'} | {'known'}: it was noted before
-- Events  none
-- Gate    open or shut: what is known of a machine is a fact that must not be lost

exempt_from_maxmemory()
local device, since = key(KEY.device, ARGV[1]), ARGV[3]
if (redis.call('HGET', device, 'last_uid') or '-') ~= ARGV[2] then return { 'known' } end
local returns = string.gsub(returns_of(device), ':%S+', ':' .. since)
if returns ~= '' then redis.call('HSET', device, 'returns', returns) end
redis.call('HDEL', device, 'last_job')
redis.call('HSET', device, 'last_uid', since, 'set_back', table.concat({ NOW_US, ARGV[2], since }, ' '))
return { 'ok' }
