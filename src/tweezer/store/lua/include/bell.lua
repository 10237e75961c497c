-- include: keys

local function ring(device)
  local bell = key(KEY.bell, device)
  if redis.call('EXISTS', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
