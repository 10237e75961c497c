-- include: device

-- Removes workers whose heartbeat has stopped, and counts the lanes of the others.
local function count_lanes(device)
  local workers, lanes = key(KEY.workers, device), 0
  redis.call('ZREMRANGEBYSCORE', workers, '-inf', NOW_MS)
  for _, worker in ipairs(redis.call('ZRANGE', workers, 0, -1)) do
    lanes = lanes + tonumber(redis.call('HGET', key(KEY.worker, worker), 'lanes') or 0)
  end
  redis.call('HSET', key(KEY.device, device), 'lanes', int(lanes))
  device_rows[device] = nil
end
