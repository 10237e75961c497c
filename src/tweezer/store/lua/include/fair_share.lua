-- include: settings

-- Start-time fair queueing: a ticket is issued at max(V, finish of its project) and charged one quantum; the difference to
-- its actual use is charged when it ends or yields. The penalty of a priority is constant, so an old batch eventually
-- precedes newer ones of higher priority.
local function rank(b)
  local fair = redis.call('HMGET', key(KEY.fair, b.device), 'V', 'p:' .. b.project)
  local virtual = tonumber(fair[1] or 0)
  return math.max(virtual, tonumber(fair[2] or 0)), virtual
end

local function charge(b, from, milliseconds)
  redis.call('HSET', key(KEY.fair, b.device), 'p:' .. b.project, int(from + milliseconds))
end

-- Charges what a taken ticket used, less the quantum that was charged when it was issued.
local function settle_service(b, t)
  local base, virtual = rank(b)
  local due = t.used - setting('quantum')
  if base + due > virtual then
    charge(b, base, due)
  else
    redis.call('HDEL', key(KEY.fair, b.device), 'p:' .. b.project)
  end
end
