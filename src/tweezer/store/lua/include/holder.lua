-- include: keys

-- Wakes the worker that holds a device for an open batch without work.
local function call_holder(b)
  local call = key(KEY.call, b.id)
  if b.exclusive == 1 and redis.call('EXISTS', call) == 0 then
    redis.call('RPUSH', call, '1')
    redis.call('PEXPIRE', call, 60000)
  end
end
