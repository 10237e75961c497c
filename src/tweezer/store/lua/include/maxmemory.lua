-- include: keys

-- A write that frees memory, made first, lets the rest of a script write past maxmemory: what is under
-- way must be able to end. The key never exists.
local function exempt_from_maxmemory() redis.call('DEL', key(KEY.none)) end
