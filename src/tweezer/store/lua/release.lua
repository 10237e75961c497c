-- release: gives a ticket and its jobs back, because its worker drains or because its body failed.
-- After too many failures in a row the batch ends in ERROR.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] 'drain'|'fail'   [4] most failures in a row
--     [5] delay after the first failure (ms), doubled with each further one   [6] longest delay (ms)
--     [7] Fault (JSON)   [8] lane time since the last call (ms)
-- Returns {'ok'} | {'doomed'} | {'stale'}
-- Events  job.pending of jobs that ran; job.error and batch.error when doomed; job.canceled of a job whose
--     cancel was requested
-- Gate    while it is shut: unavailable

exempt_from_maxmemory()
local b, t = load_held_ticket(ARGV[1], ARGV[2])
if not b then return { 'stale' } end
t.used = t.used + tonumber(ARGV[8])
take_back(b, t, ARGV[3])
local word, due = 'ok', nil
if ARGV[3] == 'fail' then
  b.failures = b.failures + 1
  due = NOW + math.min(tonumber(ARGV[5]) * 2 ^ (b.failures - 1), tonumber(ARGV[6]))
  if b.failures >= tonumber(ARGV[4]) and not is_over(b) then
    doom(b, ARGV[7])
    word = 'doomed'
  end
end
requeue_or_retire(b, t, due)
finish(b)
return { word }
