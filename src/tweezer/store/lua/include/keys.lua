-- The namespace and its keys, and the formatting of numbers for Redis.

local NS = KEYS[1]

local function key(pattern, a, b) return NS .. string.format(pattern, a, b) end

local function int(number) return string.format('%d', number) end
