-- set_priority: changes the priority of a batch that has not ended. Its ready tickets are ranked anew at once, and running
-- jobs are not affected.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   priority:str HIGH|MEDIUM|LOW
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'}
-- Events  an entry without words, if that changes it
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, priority, changes, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
if is_over(b) then return { 'over' } end
if b.priority ~= priority then
  change_priority(b, priority)
  touch(b)
  save(b)
  save_counts()
end
return { 'ok' }
