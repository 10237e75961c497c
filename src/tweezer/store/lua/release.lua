-- release: gives a ticket and its jobs back, because its worker drains or could not prepare or run the batch. After too
-- many consecutive failures, or three consecutive crashes, the batch ends in ERROR.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   why:str 'drain'|'fail'|'crash': the lane's process died while it prepared the batch
--     failures_max:int, consecutive   delay_ms:int after the first failure, doubled with each further one   delay_max_ms:int
--     fault:bytes, Fault (JSON)   used_ms:int, lane time since the last call
-- Returns {'ok'} | {'doomed'} | {'stale'}
-- Events  job.pending of jobs that ran; job.error and batch.error when doomed; job.canceled of a job whose
--     cancel was requested
-- Gate    while shut: unavailable
-- include: held_ticket, give_back, doom, finish, maxmemory

exempt_from_maxmemory()
local b, t = load_held_ticket(ticket, token)
if not b then return { 'stale' } end
t.used = t.used + used_ms
local has_failed = why ~= 'drain'
take_back(b, t, has_failed and 'fail' or 'drain', fault)
local word, due = 'ok', nil
if has_failed then
  b.failures = b.failures + 1
  b.crashes = why == 'crash' and b.crashes + 1 or 0
  due = NOW + math.min(delay_ms * 2 ^ (b.failures - 1), delay_max_ms)
  if (b.failures >= failures_max or b.crashes >= CRASH_MAX) and not is_over(b) then
    doom(b, fault)
    word = 'doomed'
  end
end
requeue_or_retire(b, t, due)
finish(b)
return { word }
