-- cancel_jobs: cancels pending jobs and requests the end of running ones.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   idempotency_key:str or ''   digest:str of the call   by:str, the requester
--     indices:digits...
-- Returns {'ok', words} | {'repeated', words} | {'conflict'} | {'unknown'} | {'newer'} | {'damaged'}; words: separated by
--     spaces, one for each job: canceled | requested | over | unknown
-- Events  job.canceled; batch.done if it was the last job of a closed batch; an entry for running jobs, too
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- Publishes  "<batch> <index>,…" on the pool's channel for running jobs
-- include: own_batch, idempotency, cancel, ranges, job_ends, finish, maxmemory, generated/job_over

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
local before = answered(b.project, idempotency_key, digest)
if before then return before end
local words, heeded = {}, {}
for at = indices_first, indices_last do
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
    note_request(st)
    end_job(b, index, st, 'C')
    write_state(b, index, st)
    if redis.call('ZREM', key(KEY.delay, b.id), index) == 1 then b.delayed = b.delayed - 1 end
  end
  if word == 'canceled' or word == 'requested' then add_to_ranges(heeded, tonumber(index)) end
  words[#words + 1] = word
end
if #heeded > 0 then
  local ranges = {}
  for i, range in ipairs(heeded) do ranges[i] = range_word(range) end
  note_attempt(b.id, table.concat(ranges, ','), by)
end
finish(b)
local reply = table.concat(words, ' ')
remember(b.project, idempotency_key, digest, reply)
return { 'ok', reply }
