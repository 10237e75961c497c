-- resume_batch: resumes a paused batch: RUNNING if a job of it has begun, else PENDING. The count
-- of its failure threshold starts anew.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'}
-- Events  batch.resumed, if it was paused; batch.done if no work is left
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, rules, issue, finish, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
if is_over(b) then return { 'over' } end
if b.status == 'S' then
  move_batch(b, b.started > 0 and 'R' or 'P')
  redis.call('HDEL', key(KEY.batch, batch_id), 'paused')
  if rules_of(b).failures then set_rule(b, 'failed', b.error) end -- so many more must fail
  issue_tickets(b)
end
finish(b)
return { 'ok' }
