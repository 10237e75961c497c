-- open_gate: jobs are handed out again, and all devices are told.
--
-- KEYS[1] namespace
-- Returns {'ok'}
-- Events  none

exempt_from_maxmemory()
redis.call('DEL', key(KEY.gate))
for _, device in ipairs(redis.call('SMEMBERS', key(KEY.devices))) do ring(device) end
return { 'ok' }
