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
-- include: new_jobs, look_at_parents, dependency

if not is_known(device) then return { 'unknown_device', device } end
local ends, unknown = look_at_parents(project, parents_first, parents_last)
if unknown then return unknown end
local waits_for, fault = {}, ''
for at = parents_first, parents_last, 3 do
  local id, when = ARGV[at], ARGV[at + 1]
  if not ends[id] then
    waits_for[#waits_for + 1] = id .. ':' .. when
  elseif fault == '' and not is_satisfied(when, ends[id]) then
    fault = cjson.encode(dependency_fault(id, ends[id]))
  end
end
return refusal(project, device, jobs, BATCH_BYTES + size_of_jobs(jobs, bytes)) or { 'ok', fault, unpack(waits_for) }
