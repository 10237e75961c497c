-- drop_kept: subtracts the results of batches that were deleted from the ledger, by project.
--
-- KEYS[1] namespace
-- ARGV dropped:{project:str bytes:int}...
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
for at = dropped_first, dropped_last, 2 do
  local record = key(KEY.project, ARGV[at])
  local left = tonumber(redis.call('HGET', record, 'kept') or 0) - tonumber(ARGV[at + 1])
  if left > 0 then
    redis.call('HSET', record, 'kept', int(left))
  else
    redis.call('HDEL', record, 'kept')
  end
end
return { 'ok' }
