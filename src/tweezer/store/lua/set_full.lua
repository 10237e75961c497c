-- set_full: refuses new work for a time, with a reason; an empty reason ends that.
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
