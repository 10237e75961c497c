-- What a restart of Redis means for a script.
-- include: keys

-- Since when this Redis may lack the last writes of the one before; 0 if there was none.
local function came_back()
  return tonumber(string.match(redis.call('GET', key(KEY.server)) or '', '^(%d+) ') or 0)
end

-- Ends the script with an error that callers receive as *unavailable*; nothing may have been written before. Until the
-- ledger has put back what was lost, a batch from before the restart must not change: its events would take numbers
-- that were given before, and a job whose end was announced would end again.
local function refuse_while_shut() error('GATE_SHUT', 0) end
