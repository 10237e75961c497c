-- note_timeout: the holder of a job asks it to stop, because it takes longer than its limit. That is noted as a request by
-- 'timeout', and is none of a user: the job ends as its holder says. Of a job on a machine its intent says so, too: whoever
-- takes it up then knows.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] index   [4] who asks, as it is noted
-- Returns {'ok'} | {'stale'}: the job is not this holder's, or has ended
-- Events  none
-- Gate    while it is shut: unavailable

exempt_from_maxmemory()
local b, t = load_held_ticket(ARGV[1], ARGV[2])
if not b then return { 'stale' } end
local id = b.id
if redis.call('SISMEMBER', key(KEY.held, id, t.n), ARGV[3]) == 0 then return { 'stale' } end
local st = read_state(redis.call('HGET', key(KEY.state, id), ARGV[3]))
if JOB_OVER[st[S.status]] then return { 'stale' } end
st[S.cancels] = int(number_of(st, S.cancels) + 1)
write_state(b, ARGV[3], st)
note_attempt(id, ARGV[3], ARGV[4])
local record = is_remote(b, ARGV[3])
if record then redis.call('HSET', key(KEY.remote, id), ARGV[3], (string.gsub(record, '%S+$', 'T'))) end
return { 'ok' }
