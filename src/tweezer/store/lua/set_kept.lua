-- set_kept: how many bytes the results take of batches that this Redis has forgotten and the ledger has, by project.
--
-- KEYS[1] namespace
-- ARGV[1] how long (ms) the count holds   [2…] two a project: its id, bytes
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
for at = 2, #ARGV, 2 do
  local record = key(KEY.project, ARGV[at])
  if tonumber(ARGV[at + 1]) > 0 then
    redis.call('HSET', record, 'kept', ARGV[at + 1])
  else
    redis.call('HDEL', record, 'kept')
  end
end
redis.call('SET', key(KEY.counted), '1', 'PX', ARGV[1])
return { 'ok' }
