-- pause_batch: pauses a batch: no job of it is handed out until it is resumed; running jobs finish. The record has who
-- paused it, when and why. Pausing it again with a reason changes them.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   by:str, the requester   reason:str for people, or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'}
-- Events  batch.paused, unless it is already paused
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, finish, maxmemory

exempt_from_maxmemory()
local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
if is_over(b) then return { 'over' } end
if b.status == 'S' and reason == '' then return { 'ok' } end
redis.call('HSET', key(KEY.batch, batch_id), 'paused', NOW_MS .. ' ' .. by .. '\n' .. reason)
touch(b)
if b.status ~= 'S' then move_batch(b, 'S') end
finish(b)
return { 'ok' }
