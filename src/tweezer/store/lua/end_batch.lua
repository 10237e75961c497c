-- end_batch: ends a batch in ERROR (running jobs finish), or an open batch without work in TIMED_OUT.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   to:str 'E'|'T'   fault:bytes, Fault (JSON) of an ERROR, or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'} | {'forbidden', letter of its status}
-- Events  job.error (ranges), batch.error if no job is running; batch.timed_out
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, doom, finish, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
if is_over(b) then return { 'over' } end
if to == 'E' then
  doom(b, fault)
elseif b.open == 1 and b.pending == 0 and b.running == 0 and b.status ~= 'S' then
  b.open, b.fate = 0, 'T'
else
  return { 'forbidden', b.status }
end
finish(b)
return { 'ok' }
