-- release: gives a ticket and its jobs back, because its worker drains or because its body failed.
-- After too many failures in a row the batch ends in ERROR; after three crashes, as a job does.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] 'drain'|'fail'|'crash': the lane's process died while it prepared the batch
--     [4] most failures in a row
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
local has_failed = ARGV[3] ~= 'drain'
take_back(b, t, has_failed and 'fail' or 'drain')
local word, due = 'ok', nil
if has_failed then
  b.failures = b.failures + 1
  b.crashes = ARGV[3] == 'crash' and b.crashes + 1 or 0
  due = NOW + math.min(tonumber(ARGV[5]) * 2 ^ (b.failures - 1), tonumber(ARGV[6]))
  if (b.failures >= tonumber(ARGV[4]) or b.crashes >= CRASH_MAX) and not is_over(b) then
    doom(b, ARGV[7])
    word = 'doomed'
  end
end
requeue_or_retire(b, t, due)
finish(b)
return { word }
