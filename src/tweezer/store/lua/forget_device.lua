-- forget_device: removes a device without workers and work: its properties, specs, maintenance and counters.
--
-- KEYS[1] namespace
-- ARGV device:str
-- Returns {'ok'} | {'unknown'} | {'served', live workers} | {'busy', pending jobs, running jobs, tickets}
-- Events  none
-- include: lanes, maxmemory

exempt_from_maxmemory()
local record, workers = key(KEY.device, device), key(KEY.workers, device)
local queues = { key(KEY.ready, device), key(KEY.due, device), key(KEY.leases, device) }
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
count_lanes(device)
local live = redis.call('ZCARD', workers)
if live > 0 then return { 'served', live } end
local row, tickets = redis.call('HMGET', record, 'pending', 'running'), 0
for _, queue in ipairs(queues) do tickets = tickets + redis.call('ZCARD', queue) end
local pending, running = tonumber(row[1] or 0), tonumber(row[2] or 0)
if pending + running + tickets > 0 then return { 'busy', int(pending), int(running), int(tickets) } end
redis.call('SREM', key(KEY.devices), device)
redis.call('DEL', record, workers, key(KEY.fair, device), key(KEY.windows, device), key(KEY.bell, device), unpack(queues))
return { 'ok' }
