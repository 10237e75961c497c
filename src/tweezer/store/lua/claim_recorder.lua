-- claim_recorder: makes a recorder the active one, or keeps it so. With a time to live of 0 it steps down.
--
-- KEYS[1] namespace
-- ARGV[1] recorder   [2] time to live (ms)
-- Returns {'ok'} | {'taken', the active one}
-- Events  none

exempt_from_maxmemory()
local active = redis.call('GET', key(KEY.recorder))
if active and active ~= ARGV[1] then return { 'taken', active } end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', key(KEY.recorder), ARGV[1], 'PX', ARGV[2])
else
  redis.call('DEL', key(KEY.recorder))
end
return { 'ok' }
