-- cancel_batch: closes a batch, cancels what is pending and requests the end of what runs; the batch is
-- CANCELED when that has ended.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3] idempotency key or ''   [4] digest of the call   [5] who asks
-- Returns {'ok'} | {'repeated'} | {'conflict'} | {'unknown'} | {'newer'} | {'over'}
-- Events  job.canceled (ranges), batch.canceled when nothing runs; an entry for running jobs too
-- Gate    while it is shut: unavailable, unless the batch was created since the restart
-- Publishes  "<batch> <index>,…" on the pool's channel for running jobs

exempt_from_maxmemory()
local b, none = load_own_batch(ARGV[1], ARGV[2])
if not b then return { none } end
local before = answered(b.project, ARGV[3], ARGV[4])
if before then return before end
if is_over(b) then return { 'over' } end
b.open = 0
b.fate = b.fate or 'C'
for _, job in ipairs(end_pending(b, 'C')) do request_cancel(b, job[1], job[2]) end
note_attempt(b.id, '*', ARGV[5])
finish(b)
remember(b.project, ARGV[3], ARGV[4], '')
return { 'ok' }
