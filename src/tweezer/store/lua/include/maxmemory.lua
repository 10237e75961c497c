-- include: keys

-- If the first write of a script frees memory, the rest of it may write beyond maxmemory: work that has begun must be able
-- to end. The key never exists.
local function exempt_from_maxmemory() redis.call('DEL', key(KEY.none)) end
