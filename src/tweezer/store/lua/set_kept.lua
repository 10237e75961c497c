-- set_kept: sets the bytes of results of batches that only the ledger has, by project.
--
-- KEYS[1] namespace
-- ARGV counted_ms:digits, how long the count is valid   kept:{project:str bytes:int}...
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
for at = kept_first, kept_last, 2 do
  local record = key(KEY.project, ARGV[at])
  if tonumber(ARGV[at + 1]) > 0 then
    redis.call('HSET', record, 'kept', ARGV[at + 1])
  else
    redis.call('HDEL', record, 'kept')
  end
end
redis.call('SET', key(KEY.counted), '1', 'PX', counted_ms)
return { 'ok' }
