-- add_jobs: appends jobs to an open batch, all or none.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   idempotency_key:str or ''   digest:str of the call
--     jobs_max:int, limit of a batch   specs:bytes..., a JobSpec for each job
-- Returns {'ok', index of the first} | {'repeated', index of the first} | {'conflict'} | {'unknown'} | {'newer'} | {'damaged'}
--     | {'closed'} | {'over'} | {'full', why} | {'too_many', jobs it has}
--     | {'quota', project, its name, limit, used, added}
-- Events  an entry without words, because queueing is not a transition
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, idempotency, new_jobs, issue, holder, conclude

local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
local before = answered(b.project, idempotency_key, digest)
if before then return before end
if is_over(b) then return { 'over' } end
if b.open == 0 then return { 'closed' } end
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
return { 'ok', first }
