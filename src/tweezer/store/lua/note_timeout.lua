-- note_timeout: the holder of a job asks it to stop, because it takes longer than its limit. That is noted as a request by
-- 'timeout', and is none of a user: the job ends as its holder says. Of a job on a machine its intent says so, too: whoever
-- takes it up then knows.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   by:str, who asks, as it is noted
-- Returns {'ok'} | {'stale'}: the job is not this holder's, or has ended
-- Events  none
-- Gate    while it is shut: unavailable
-- include: held_ticket, intent, job, cancel, maxmemory, generated/job_over

exempt_from_maxmemory()
local b, t = load_held_ticket(ticket, token)
if not b then return { 'stale' } end
local id = b.id
if redis.call('SISMEMBER', key(KEY.held, id, t.n), index) == 0 then return { 'stale' } end
local st = read_state(redis.call('HGET', key(KEY.state, id), index))
if JOB_OVER[st[S.status]] then return { 'stale' } end
st[S.cancels] = int(number_of(st, S.cancels) + 1)
write_state(b, index, st)
note_attempt(id, index, by)
local record = is_remote(b, index)
if record then redis.call('HSET', key(KEY.remote, id), index, (string.gsub(record, '%S+$', 'T'))) end
return { 'ok' }
