-- release: gives a ticket and its jobs back, because its worker drains or because its body failed.
-- After too many failures in a row the batch ends in ERROR.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] 'drain'|'fail'   [4] delay before it is ready again (ms)
--     [5] most failures in a row   [6] Fault (JSON)
-- Returns {'ok'} | {'doomed'} | {'stale'}
-- Events  job.pending of jobs that ran; job.error and batch.error when doomed; job.canceled of a job whose
--     cancel was requested

exempt_from_maxmemory()
local id, n = split_ticket(ARGV[1])
local b = load_batch(id)
local t = b and read_ticket(b, n)
if not t or t.token ~= ARGV[2] then return { 'stale' } end
take_back(b, t, ARGV[3])
local word, wait = 'ok', tonumber(ARGV[4])
if ARGV[3] == 'fail' then
  b.failures = b.failures + 1
  if b.failures >= tonumber(ARGV[5]) then
    doom(b, ARGV[6])
    word = 'doomed'
  end
end
requeue_or_retire(b, t, wait > 0 and NOW + wait or nil)
finish(b)
return { word }
