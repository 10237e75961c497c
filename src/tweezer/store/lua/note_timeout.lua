-- note_timeout: records that a job exceeded its time limit and that its holder asks it to stop. It is recorded as a request
-- by 'timeout', not as a user's cancel: its holder determines how the job ends. For a job on a machine the intent is
-- marked, too, for the next holder.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   by:str, the recorded requester
-- Returns {'ok'} | {'stale'}: the job is not this holder's, or has ended
-- Events  none
-- Gate    while shut: unavailable
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
