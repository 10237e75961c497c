-- include: keys, generated/settings

-- What operators set (milliseconds), or its default.
local found_settings

local function setting(name)
  found_settings = found_settings or redis.call('HMGET', key(KEY.settings), unpack(SETTINGS))
  return tonumber(found_settings[SETTING[name]] or DEFAULT[name])
end
