-- set_settings: stores the settings that the scripts read.
--
-- KEYS[1] namespace
-- ARGV values:{field:str value:int}...
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
redis.call('HSET', key(KEY.settings), unpack(ARGV))
return { 'ok' }
