-- heartbeat: reports that a worker is running, and its properties and those of its device. A time to live of 0 removes
-- the worker.
--
-- KEYS[1] namespace
-- ARGV worker:str   device:str   ttl_ms:int
--     about_device:{field:str value:any}[]   about_worker:{field:str value:any}..., including lanes
-- Returns {'ok', reason of a pause or '', 1 if the device has specs, else 0}
-- Events  none
-- include: lanes, maxmemory

exempt_from_maxmemory()
if ttl_ms == 0 then
  redis.call('DEL', key(KEY.worker, worker))
  redis.call('ZREM', key(KEY.workers, device), worker)
else
  redis.call('SADD', key(KEY.devices), device)
  redis.call('HSET', key(KEY.device, device), unpack(ARGV, about_device_first, about_device_last))
  redis.call('HSETNX', key(KEY.device, device), 'created', NOW_MS)
  redis.call('HDEL', key(KEY.device, device), 'inactive')
  redis.call('HSET', key(KEY.worker, worker), 'device', device, unpack(ARGV, about_worker_first))
  redis.call('PEXPIRE', key(KEY.worker, worker), int(ttl_ms))
  redis.call('ZADD', key(KEY.workers, device), int(NOW + ttl_ms), worker)
end
count_lanes(device)
local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'specs_name')
return { 'ok', row[1] or '', row[2] and 1 or 0 }
