-- note_remote: records the machine's id of a job, even for a worker whose ticket is lost.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   index:digits   name:str of the intent   uid:str, the machine's id of the job, without spaces; a number
--     if the machine numbers its jobs   job_id:str, Tweezer's id of the job   has_names:str '1'|'0': whether the machine
--     returns that id, or ''
-- Returns {'ok'} | {'unknown'}: there is no such intent
-- Events  none
-- Gate    open or shut: facts about jobs on a machine must not be lost
-- include: batch, returns, maxmemory

exempt_from_maxmemory()
local b = load_batch(batch_id)
if not b then return { 'unknown' } end
local remote = key(KEY.remote, b.id)
local at, own, after = string.match(redis.call('HGET', remote, index) or '', '^(%S+) (%S+) (%S+) ')
if own ~= name then return { 'unknown' } end
redis.call('HSET', remote, index, table.concat({ at, own, after, uid, '1' }, ' '))
local device = key(KEY.device, b.device)
returns_of(device) -- recorded before last_uid changes
local number = tonumber(uid)
if number and number > tonumber(redis.call('HGET', device, 'last_uid') or -1) then
  redis.call('HSET', device, 'last_uid', uid, 'last_job', uid .. ' ' .. job_id)
end
if has_names ~= '' then redis.call('HSET', device, 'has_names', has_names) end
return { 'ok' }
