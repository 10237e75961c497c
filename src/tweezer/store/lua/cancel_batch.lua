-- cancel_batch: closes a batch, cancels its pending jobs and requests the end of its running jobs. The batch is CANCELED
-- when these have ended.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   idempotency_key:str or ''   digest:str of the call   by:str, the requester
-- Returns {'ok'} | {'repeated'} | {'conflict'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'}
-- Events  job.canceled (ranges), batch.canceled if no job is running; an entry for running jobs, too
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- Publishes  "<batch> <index>,…" on the pool's channel for running jobs
-- include: own_batch, idempotency, cancel_all, finish, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
local before = answered(b.project, idempotency_key, digest)
if before then return before end
if is_over(b) then return { 'over' } end
cancel_all(b, 'C', by)
finish(b)
remember(b.project, idempotency_key, digest, '')
return { 'ok' }
