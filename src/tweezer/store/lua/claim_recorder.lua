-- claim_recorder: makes a recorder the active one, or extends that. A time to live of 0 ends it.
--
-- KEYS[1] namespace
-- ARGV recorder:str   ttl_ms:int
-- Returns {'ok'} | {'taken', active recorder}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
local active = redis.call('GET', key(KEY.recorder))
if active and active ~= recorder then return { 'taken', active } end
if ttl_ms > 0 then
  redis.call('SET', key(KEY.recorder), recorder, 'PX', int(ttl_ms))
else
  redis.call('DEL', key(KEY.recorder))
end
return { 'ok' }
