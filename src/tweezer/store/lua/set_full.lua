-- set_full: refuses new work for a while, with the reason; an empty reason takes that back.
--
-- KEYS[1] namespace
-- ARGV[1] reason   [2] time to live (ms)
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
if ARGV[1] == '' then
  redis.call('DEL', key(KEY.full))
else
  redis.call('SET', key(KEY.full), ARGV[1], 'PX', ARGV[2])
end
return { 'ok' }
