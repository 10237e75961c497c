-- ring: rings the doorbell of a device; it holds at most one element.
--
-- KEYS[1] namespace
-- ARGV device:str
-- Returns {'ok'}
-- Events  none
-- include: bell, maxmemory

exempt_from_maxmemory()
ring(device)
return { 'ok' }
