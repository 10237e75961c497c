-- The namespace, its keys, and numbers as Redis has them.

local NS = KEYS[1]

local function key(pattern, a, b) return NS .. string.format(pattern, a, b) end

local function int(number) return string.format('%.0f', number) end
