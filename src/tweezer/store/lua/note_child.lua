-- note_child: records that another batch repeats this one. May be repeated.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   child:str, id of the batch that repeats it
-- Returns {'ok'} | {'unknown'}
-- Events  none
-- Gate    open or shut: it makes no event and changes no job
-- include: batch

local b = load_batch(batch_id)
if not b then return { 'unknown' } end
local record = key(KEY.batch, b.id)
local children = redis.call('HGET', record, 'children')
if not children then
  redis.call('HSET', record, 'children', child)
elseif not string.find(children, child, 1, true) then
  redis.call('HSET', record, 'children', children .. ' ' .. child)
end
return { 'ok' }
