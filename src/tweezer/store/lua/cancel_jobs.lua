-- cancel_jobs: cancels jobs that are pending, requests the end of those that run.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3…] indices
-- Returns {'ok', word, …} with one word a job: canceled | requested | over | unknown;  | {'unknown'}
-- Events  job.canceled; batch.done when that was the last of a closed batch
-- Publishes  "<batch> <index>,…" on the pool's channel for running jobs

exempt_from_maxmemory()
local b = load_own_batch(ARGV[1], ARGV[2])
if not b then return { 'unknown' } end
local reply = { 'ok' }
for at = 3, #ARGV do
  local index, word = ARGV[at], 'canceled'
  local st = read_state(redis.call('HGET', key(KEY.state, b.id), index))
  if tonumber(index) < 0 or tonumber(index) >= b.jobs then
    word = 'unknown'
  elseif JOB_OVER[st[S.status]] then
    word = 'over'
  elseif st[S.status] == 'R' then
    request_cancel(b, index, st)
    word = 'requested'
  else
    end_job(b, index, st, 'C')
    write_state(b, index, st)
    if redis.call('ZREM', key(KEY.delay, b.id), index) == 1 then b.delayed = b.delayed - 1 end
  end
  reply[#reply + 1] = word
end
finish(b)
return reply
