-- note_set_back: the job ids of a machine began anew, as its last known job shows. What was known of the order of its jobs
-- is replaced by `since`, also for jobs that wait since Redis came back.
--
-- KEYS[1] namespace
-- ARGV device:str   last_uid:str of the known job by which the set-back was noticed, or '-'   since:digits, a job of the
--     machine that is older than any of ours submitted after the set-back
-- Returns {'ok'} | {'known'}: it was noted before
-- Events  none
-- Gate    open or shut: what is known of a machine is a fact that must not be lost
-- include: clock, returns, maxmemory

exempt_from_maxmemory()
local record = key(KEY.device, device)
if (redis.call('HGET', record, 'last_uid') or '-') ~= last_uid then return { 'known' } end
local returns = string.gsub(returns_of(record), ':%S+', ':' .. since)
if returns ~= '' then redis.call('HSET', record, 'returns', returns) end
redis.call('HDEL', record, 'last_job')
redis.call('HSET', record, 'last_uid', since, 'set_back', table.concat({ NOW_US, last_uid, since }, ' '))
return { 'ok' }
