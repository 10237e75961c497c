-- submit: writes a batch, its jobs, its first event and its tickets; all or nothing.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project   [3] device   [4] priority (HIGH|MEDIUM|LOW)   [5] open ('1'|'0')
--     [6] BatchDoc (bytes)   [7] not before (ms since 1970, 0 is now)   [8] idle limit when open (ms)
--     [9] transient failures a job may have   [10] wall time of a job (ms)   [11] idempotency key or ''
--     [12] digest of the call   [13…] JobSpec (bytes), one a job
-- Returns {'ok', batch id} | {'repeated', batch id} | {'conflict'} | {'exists'} | {'full', why}
--     | {'quota', project, its name, limit, used, added} | {'unknown_device'}
-- Events  batch.created; batch.done if it is closed and has no job
-- Gate    open or shut: the batch is newer than any restart

local id, project, device = ARGV[1], ARGV[2], ARGV[3]
local before = answered(project, ARGV[11], ARGV[12])
if before then return before end
if redis.call('EXISTS', key(KEY.device, device)) == 0 then return { 'unknown_device' } end
if redis.call('EXISTS', key(KEY.batch, id)) == 1 then return { 'exists' } end
local jobs = #ARGV - 12
local bytes = jobs_bytes(13)
local refused = refusal(project, device, jobs, BATCH_BYTES + #ARGV[6] + bytes)
if refused then return refused end

redis.call('HSET', key(KEY.batch, id), 'v', VERSION, 'doc', ARGV[6],
  'project', project, 'device', device, 'priority', ARGV[4], 'status', 'P', 'created', NOW_US, 'timeout', ARGV[10])
local b = load_batch(id)
b.open = tonumber(ARGV[5])
local about = redis.call('HMGET', key(KEY.device, device), 'exclusive', 'reattaches')
b.exclusive, b.reattaches = tonumber(about[1] or 0), tonumber(about[2] or 0)
b.not_before, b.idle, b.retries = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
b.bytes = BATCH_BYTES + #ARGV[6]
add_jobs(b, 13, bytes)
emit(b, 'NP:' .. int(jobs))
issue_tickets(b)
finish(b)
remember(project, ARGV[11], ARGV[12], id)
return { 'ok', id }
