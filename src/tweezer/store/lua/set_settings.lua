-- set_settings: publishes what operators set to where the scripts read it.
--
-- KEYS[1] namespace
-- ARGV[1…] fields and values
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
redis.call('HSET', key(KEY.settings), unpack(ARGV))
return { 'ok' }
