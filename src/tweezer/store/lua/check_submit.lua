-- check_submit: returns what a submit of so much work would return. Nothing is written.
--
-- KEYS[1] namespace
-- ARGV project:str   device:str   jobs:int   bytes:int of the doc and of the specs
--     parents:{batch_id:str when:str ended:str}[], as in submit
-- Returns {'ok', the fault (JSON) if the batch would be cancelled at once or '', a batch that it would wait for, …}
--     | {'full', why} | {'quota', project, its name, limit, used, added} | {'unknown_device', name}
--     | {'unknown_parents', id, …}
-- Events  none
-- Gate    while shut: unavailable if it depends on a batch that is missing
-- include: new_jobs, dependents

if not is_known(device) then return { 'unknown_device', device } end
local waits_for, fault, unknown = look_at_parents(project, parents_first, parents_last)
if unknown then return unknown end
return refusal(project, device, jobs, BATCH_BYTES + size_of_jobs(jobs, bytes))
  or { 'ok', fault and cjson.encode(fault) or '', unpack(waits_for) }
