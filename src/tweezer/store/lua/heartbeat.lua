-- heartbeat: a worker says that it lives, what it serves, and what its device is like. With a time to
-- live of 0 it says goodbye.
--
-- KEYS[1] namespace
-- ARGV[1] worker   [2] device   [3] time to live (ms)   [4] number of fields of the device
--     [5…] fields and values of the device, then fields and values of the worker (lanes among them)
-- Returns {'ok', reason of a pause or '', 1 if what clients are told of the device is there, or 0}
-- Events  none

exempt_from_maxmemory()
local worker, device, ttl, fields = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if ttl == 0 then
  redis.call('DEL', key(KEY.worker, worker))
  redis.call('ZREM', key(KEY.workers, device), worker)
else
  redis.call('SADD', key(KEY.devices), device)
  redis.call('HSET', key(KEY.device, device), unpack(ARGV, 5, 4 + 2 * fields))
  redis.call('HSETNX', key(KEY.device, device), 'created', NOW_MS)
  redis.call('HDEL', key(KEY.device, device), 'inactive')
  redis.call('HSET', key(KEY.worker, worker), 'device', device, unpack(ARGV, 5 + 2 * fields))
  redis.call('PEXPIRE', key(KEY.worker, worker), ttl)
  redis.call('ZADD', key(KEY.workers, device), int(NOW + ttl), worker)
end
count_lanes(device)
local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'specs_name')
return { 'ok', row[1] or '', row[2] and 1 or 0 }
