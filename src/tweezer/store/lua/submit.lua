-- submit: writes a batch, its jobs, its first event and its tickets, all or nothing. A call with the id of a batch that
-- its project has is a repeated call. A batch that depends on others gets no tickets; if one of these has ended, `apply_ends`
-- must follow, or the next sweep decides.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str   device:str   priority:str HIGH|MEDIUM|LOW   open:int 1|0   doc:bytes, BatchDoc
--     not_before_ms:int since 1970, 0 is now   idle_ms:int, limit when open   retries:int, transient failures of a job
--     timeout_ms:int of a job   rules:str, see include/rules.lua, or ''
--     again:int 1|0, an earlier call with this id may have taken effect
--     idempotency_key:str or ''   digest:str of the call
--     equal:str or '', digest of equal calls without an idempotency key   attempt:str or ''   expires_us:int, see `repeated`
--     running:str[], such calls
--     parents:{batch_id:str when:str ended:str}[], the batches that it depends on: when: the letter of When; ended: how it
--     ended according to the ledger, as in `end_of`, or ''
--     specs:bytes..., JobSpec
-- Returns {'ok', batch id, NOW_US} | {'repeated', batch id, the call or nil} | {'late', NOW_US} | {'conflict'}
--     | {'exists'}: another project has that id | {'full', why} | {'quota', project, its name, limit, used, added}
--     | {'unknown_device', name} | {'unknown_parents', id, …}: the project does not have them
-- Events  batch.created; batch.done if it is closed, has no jobs and depends on no batch
-- Gate    while shut: unavailable if it is called again, because the ledger may have that batch, or if it depends on a
--     batch that is missing
-- include: gate, restart, lists, calls, idempotency, new_jobs, look_at_parents, deadlines, issue, conclude, generated/record

local owner = redis.call('HGET', key(KEY.batch, batch_id), 'project')
if owner then return owner == project and { 'repeated', batch_id } or { 'exists' } end
if again == 1 and is_shut() then refuse_while_shut() end
local before = repeated(equal, attempt, expires_us, running_first, running_last)
  or answered(project, idempotency_key, digest)
if before then return before end
if not is_known(device) then return { 'unknown_device', device } end
local ends, unknown = look_at_parents(project, parents_first, parents_last)
if unknown then return unknown end
local jobs, bytes = specs_last - specs_first + 1, jobs_bytes(specs_first)
local refused = refusal(project, device, jobs, BATCH_BYTES + #doc + bytes)
if refused then return refused end

local b, about = read_batch(batch_id, {}), device_row(device)
b.project, b.device, b.priority, b.created, b.status, b.open = project, device, priority, tonumber(NOW_US), 'P', open
b.exclusive, b.reattaches = about.exclusive and 1 or 0, about.reattaches and 1 or 0
b.timeout, b.retries, b.idle, b.not_before = timeout_ms, retries, open == 1 and idle_ms or 0, not_before_ms
b.changed = { 'v', VERSION, 'project', project, 'doc', doc, 'made', pack_made(b) }
b.bytes = BATCH_BYTES + #doc
if rules ~= '' then
  b.rules = rules
  put(b.changed, 'rules', rules)
end
add_jobs(b, specs_first, bytes)
emit(b, 'NP:' .. int(jobs))
redis.call('ZADD', key(KEY.batches, project), NOW_MS, batch_id)
b.waits = parents_first <= parents_last
if b.waits then
  local waits_for = {}
  for at = parents_first, parents_last, 3 do
    local id, when = ARGV[at], ARGV[at + 1]
    waits_for[#waits_for + 1] = id .. ':' .. when
    redis.call('ZADD', key(KEY.dependents, id), NOW_US, batch_id)
    if ends[id] then redis.call('ZADD', key(KEY.releases), NOW_MS, id .. ':' .. ends[id]) end
  end
  put(b.changed, 'parents', table.concat(waits_for, ' '))
  enter_deadline(b)
else
  set_deadlines(b)
  issue_tickets(b)
end
conclude(b)
save(b)
save_counts()
save_shares()
remember(project, idempotency_key, digest, batch_id)
begin_call(equal, attempt, batch_id)
return { 'ok', batch_id, NOW_US }
