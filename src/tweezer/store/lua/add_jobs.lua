-- add_jobs: appends jobs to an open batch; all or nothing.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3] idempotency key or ''   [4] digest of the call
--     [5] most jobs a batch may have   [6…] JobSpec (bytes), one a job
-- Returns {'ok', index of the first} | {'repeated', index of the first} | {'conflict'} | {'unknown'} | {'newer'}
--     | {'closed'} | {'over'} | {'full', why} | {'too_many', jobs it has}
--     | {'quota', project, its name, limit, used, added}
-- Events  none: being queued is no transition; an entry without a word
-- Gate    while it is shut: unavailable, unless the batch was created since the restart

local b, none = load_own_batch(ARGV[1], ARGV[2])
if not b then return { none } end
local before = answered(b.project, ARGV[3], ARGV[4])
if before then return before end
if is_over(b) then return { 'over' } end
if b.open == 0 then return { 'closed' } end
local count = #ARGV - 5
if b.jobs + count > tonumber(ARGV[5]) then return { 'too_many', int(b.jobs) } end
local bytes = jobs_bytes(6)
local refused = refusal(b.project, b.device, count, bytes)
if refused then return refused end

local first = int(b.jobs)
add_jobs(b, 6, bytes)
touch(b)
if b.status ~= 'S' then issue_tickets(b) end
call_holder(b)
finish(b)
remember(b.project, ARGV[3], ARGV[4], first)
return { 'ok', first }
