-- Restarts of Redis.
-- include: keys

-- The time (ms) of the last restart, at which Redis may have lost its last writes; 0 without one.
local function came_back()
  return tonumber(string.match(redis.call('GET', key(KEY.server)) or '', '^(%d+) ') or 0)
end

-- Ends the script with an error that callers receive as *unavailable*; it must not have written anything. Until the ledger
-- has restored what was lost, a batch from before the restart must not change: its events would get numbers that were
-- used before, and a job whose end was announced would end again.
local function refuse_while_shut() error('GATE_SHUT', 0) end
