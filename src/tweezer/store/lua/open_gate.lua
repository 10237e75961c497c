-- open_gate: opens the gate, so that jobs are handed out again, and rings the bells of all devices.
--
-- KEYS[1] namespace
-- ARGV server:bytes, the value of its key when the caller compared Redis with the ledger, or '*' for any
-- Returns {'ok'} | {'other'}: Redis has restarted since then
-- Events  none
-- include: bell, maxmemory

exempt_from_maxmemory()
if server ~= '*' and server ~= (redis.call('GET', key(KEY.server)) or '') then return { 'other' } end
redis.call('DEL', key(KEY.gate))
for _, device in ipairs(redis.call('SMEMBERS', key(KEY.devices))) do ring(device) end
return { 'ok' }
