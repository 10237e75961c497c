-- set_full: refuses new work for a while, with the reason; an empty reason takes that back.
--
-- KEYS[1] namespace
-- ARGV reason:str or ''   ttl_ms:digits
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
if reason == '' then
  redis.call('DEL', key(KEY.full))
else
  redis.call('SET', key(KEY.full), reason, 'PX', ttl_ms)
end
return { 'ok' }
