-- include: keys

-- For how long (ms), at most, the gate is still shut: Redis started again, and the ledger may have what it lost. Not
-- above 0: the gate is open. Read once a script.
local shut_ms

local function shut_for()
  shut_ms = shut_ms or redis.call('PTTL', key(KEY.gate))
  return shut_ms
end

local function is_shut() return shut_for() > 0 end
