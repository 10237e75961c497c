-- close: closes a batch: no more jobs can be added. Closing a closed batch changes nothing.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'}
-- Events  batch.done if no job is pending or running, else an entry without words
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, holder, finish, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
if is_over(b) then return { 'over' } end
if b.open == 1 then touch(b) end
b.open = 0
redis.call('ZREM', key(KEY.idle), b.id)
call_holder(b)
finish(b)
return { 'ok' }
