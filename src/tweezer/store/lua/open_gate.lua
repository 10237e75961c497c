-- open_gate: jobs are handed out again, and all devices are told.
--
-- KEYS[1] namespace
-- ARGV server:bytes, the value of its key when the caller looked at what Redis has, or '*' for any
-- Returns {'ok'} | {'other'}: Redis has restarted since the caller looked
-- Events  none
-- include: bell, maxmemory

exempt_from_maxmemory()
if server ~= '*' and server ~= (redis.call('GET', key(KEY.server)) or '') then return { 'other' } end
redis.call('DEL', key(KEY.gate))
for _, device in ipairs(redis.call('SMEMBERS', key(KEY.devices))) do ring(device) end
return { 'ok' }
