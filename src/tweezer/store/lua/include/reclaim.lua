-- Tickets of a device that are due: expired leases and tickets whose time has come.
-- include: give_back, failures, finish

-- Whether a batch now has the exclusive device: the lease of its ticket is the lease of the device.
local function is_taken(device)
  return device_row(device).exclusive and redis.call('EXISTS', key(KEY.leases, device)) == 1
end

-- Takes back tickets whose lease has expired. Appends { ticket, lane } to `lost` for each that a lane held.
local function reclaim_expired(device, limit, lost)
  local leases = key(KEY.leases, device)
  local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', NOW_MS, 'LIMIT', 0, limit)
  for _, name in ipairs(expired) do
    local id, n = split_ticket(name)
    local b, t = load_batch(id, n)
    if t and not b then
      redis.call('ZADD', leases, int(NOW + LEAVE_ALONE), name)
    elseif not t then
      redis.call('ZREM', leases, name)
      redis.call('DEL', key(KEY.held, id, n))
    else
      if t.token ~= '0' then
        count(device, 'lost', 1)
        lost[#lost + 1] = { name, t.lane }
      end
      take_back(b, t, 'lost')
      limit_failures(b)
      requeue_or_retire(b, t)
      finish(b)
    end
  end
end

-- Makes tickets ready whose time has come.
local function ready_due(device, limit)
  local due = key(KEY.due, device)
  local names = redis.call('ZRANGEBYSCORE', due, '-inf', NOW_MS, 'LIMIT', 0, limit)
  for _, name in ipairs(names) do
    redis.call('ZREM', due, name)
    local id, n = split_ticket(name)
    local b, problem = load_batch(id)
    if b then
      queue_ticket(b, { n = n, name = name })
    elseif problem then
      redis.call('ZADD', due, int(NOW + LEAVE_ALONE), name)
    end
  end
  return #names
end
