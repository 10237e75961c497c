-- Commands with long lists of arguments.

local function put(list, name, value) list[#list + 1] = name; list[#list + 1] = value end

-- Calls a variadic command with a long list, a thousand elements at a time, because unpack fails near 8,000.
local function each_thousand(command, name, list)
  for first = 1, #list, 1000 do
    redis.call(command, name, unpack(list, first, math.min(first + 999, #list)))
  end
end
