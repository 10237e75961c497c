-- include: keys

-- The longest time (ms) for which the gate remains shut, after Redis restarted and before the ledger has restored what it
-- lost; 0 or less if the gate is open. Read once per script.
local shut_ms

local function shut_for()
  shut_ms = shut_ms or redis.call('PTTL', key(KEY.gate))
  return shut_ms
end

local function is_shut() return shut_for() > 0 end
