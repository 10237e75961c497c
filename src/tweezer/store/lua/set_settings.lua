-- set_settings: publishes what operators set to where the scripts read it.
--
-- KEYS[1] namespace
-- ARGV values:{field:str value:int}...
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
redis.call('HSET', key(KEY.settings), unpack(ARGV))
return { 'ok' }
