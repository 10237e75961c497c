-- The time of this call by Redis' clock, in milliseconds (NOW_US: microseconds).
-- include: keys

local clock = redis.call('TIME')
local NOW_US = clock[1] .. string.format('%06d', tonumber(clock[2]))
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local NOW_MS = int(NOW)
