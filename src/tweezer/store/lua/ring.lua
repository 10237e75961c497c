-- ring: rings the doorbell of a device; it holds at most one element.
--
-- KEYS[1] namespace
-- ARGV[1] device
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
ring(ARGV[1])
return { 'ok' }
