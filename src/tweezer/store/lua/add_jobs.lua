-- add_jobs: appends jobs to an open batch, all or none.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   jobs_max:int, limit of a batch   idempotency_key:str or ''   digest:str of the call
--     equal:str or '', digest of equal calls without an idempotency key   attempt:str or ''   expires_us:int, see `repeated`
--     running:str[], such calls   specs:bytes..., a JobSpec for each job
-- Returns {'ok', index of the first, NOW_US} | {'repeated', index of the first, the call or nil} | {'late', NOW_US}
--     | {'conflict'} | {'unknown'} | {'newer'} | {'damaged'} | {'closed'} | {'over'} | {'full', why}
--     | {'too_many', jobs it has} | {'quota', project, its name, limit, used, added}
--     | {'unknown_device', name}, if it was forgotten since the submit
-- Events  an entry without words, because queueing is not a transition
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, calls, idempotency, new_jobs, issue, holder, finish

local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
local before = repeated(equal, attempt, expires_us, running_first, running_last)
  or answered(b.project, idempotency_key, digest)
if before then return before end
if is_over(b) then return { 'over' } end
if b.open == 0 then return { 'closed' } end
if not is_known(b.device) then return { 'unknown_device', b.device } end
local count = specs_last - specs_first + 1
if b.jobs + count > jobs_max then return { 'too_many', int(b.jobs) } end
local bytes = jobs_bytes(specs_first)
local refused = refusal(b.project, b.device, count, bytes)
if refused then return refused end

local first = int(b.jobs)
add_jobs(b, specs_first, bytes)
touch(b)
if b.status ~= 'S' then issue_tickets(b) end
call_holder(b)
finish(b)
remember(b.project, idempotency_key, digest, first)
begin_call(equal, attempt, first)
return { 'ok', first, NOW_US }
