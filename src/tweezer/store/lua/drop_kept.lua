-- drop_kept: takes off the results of batches that were deleted from the ledger, by project.
--
-- KEYS[1] namespace
-- ARGV[1…] two a project: its id, bytes
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
for at = 1, #ARGV, 2 do
  local record = key(KEY.project, ARGV[at])
  local left = tonumber(redis.call('HGET', record, 'kept') or 0) - tonumber(ARGV[at + 1])
  if left > 0 then
    redis.call('HSET', record, 'kept', int(left))
  else
    redis.call('HDEL', record, 'kept')
  end
end
return { 'ok' }
