-- submit: writes a batch, its jobs, its first event and its tickets, all or nothing.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str   device:str   priority:str HIGH|MEDIUM|LOW   open:int 1|0   doc:bytes, BatchDoc
--     not_before_ms:int since 1970, 0 is now   idle_ms:int, limit when open   retries:int, transient failures of a job
--     timeout_ms:digits of a job   idempotency_key:str or ''   digest:str of the call   specs:bytes..., JobSpec
-- Returns {'ok', batch id} | {'repeated', batch id} | {'conflict'} | {'exists'} | {'full', why}
--     | {'quota', project, its name, limit, used, added} | {'unknown_device'}
-- Events  batch.created; batch.done if it is closed and has no jobs
-- Gate    open or shut: the batch is newer than any restart
-- include: idempotency, new_jobs, issue, conclude

local before = answered(project, idempotency_key, digest)
if before then return before end
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown_device' } end
if redis.call('EXISTS', key(KEY.batch, batch_id)) == 1 then return { 'exists' } end
local jobs, bytes = specs_last - specs_first + 1, jobs_bytes(specs_first)
local refused = refusal(project, device, jobs, BATCH_BYTES + #doc + bytes)
if refused then return refused end

redis.call('HSET', key(KEY.batch, batch_id), 'v', VERSION, 'doc', doc,
  'project', project, 'device', device, 'priority', priority, 'status', 'P', 'created', NOW_US, 'timeout', timeout_ms)
local b = load_batch(batch_id)
b.open = open
local about = redis.call('HMGET', key(KEY.device, device), 'exclusive', 'reattaches')
b.exclusive, b.reattaches = tonumber(about[1] or 0), tonumber(about[2] or 0)
b.not_before, b.idle, b.retries = not_before_ms, idle_ms, retries
b.bytes = BATCH_BYTES + #doc
add_jobs(b, specs_first, bytes)
emit(b, 'NP:' .. int(jobs))
issue_tickets(b)
finish(b)
remember(project, idempotency_key, digest, batch_id)
return { 'ok', batch_id }
