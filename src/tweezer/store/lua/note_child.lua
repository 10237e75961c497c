-- note_child: notes that another batch repeats this one. May be repeated.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] id of the batch that repeats it
-- Returns {'ok'} | {'unknown'}
-- Events  none
-- Gate    open or shut: it makes no event and moves no job

local b = load_batch(ARGV[1])
if not b then return { 'unknown' } end
local record = key(KEY.batch, b.id)
local children = redis.call('HGET', record, 'children')
if not children then
  redis.call('HSET', record, 'children', ARGV[2])
elseif not string.find(children, ARGV[2], 1, true) then
  redis.call('HSET', record, 'children', children .. ' ' .. ARGV[2])
end
return { 'ok' }
