-- include: settings

-- Start-time fair queueing: a ticket is issued at max(V, finish of its project) and charged one quantum; the difference to
-- its actual use is charged when it ends or yields. The penalty of a priority is constant, so an old batch eventually
-- precedes newer ones of higher priority.
--
-- By device: V, and the finish of each project (0 without one). Read when needed, and written once per script.
local shares = {}

local function share_of(device, project)
  local share = shares[device]
  if not share then
    share = { finishes = {}, changed = {} }
    shares[device] = share
  end
  if not share.finishes[project] then
    local row = redis.call('HMGET', key(KEY.fair, device), 'V', 'p:' .. project)
    share.virtual = share.virtual or tonumber(row[1] or 0)
    share.finishes[project] = tonumber(row[2] or 0)
  end
  return share
end

local function rank(b)
  local share = share_of(b.device, b.project)
  return math.max(share.virtual, share.finishes[b.project]), share.virtual
end

-- Sets the finish of the batch's project; 0 removes it.
local function charge(b, time)
  local share = share_of(b.device, b.project)
  share.finishes[b.project], share.changed['p:' .. b.project] = time, time
end

-- Advances V to the rank of a ticket that is taken.
local function advance(b, score)
  local share = share_of(b.device, b.project)
  if score > share.virtual then share.virtual, share.changed.V = score, score end
end

-- Charges what a taken ticket used, less the quantum that was charged when it was issued.
local function settle_service(b, t)
  local base, virtual = rank(b)
  local time = base + t.used - setting('quantum')
  charge(b, time > virtual and time or 0)
end

local function save_shares()
  for device, share in pairs(shares) do
    for field, value in pairs(share.changed) do
      if value > 0 then
        redis.call('HSET', key(KEY.fair, device), field, int(value))
      else
        redis.call('HDEL', key(KEY.fair, device), field)
      end
    end
    share.changed = {}
  end
end
