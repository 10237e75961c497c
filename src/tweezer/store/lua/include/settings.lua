-- include: keys, generated/settings

-- Returns a setting or its default; times are in milliseconds.
local found_settings

local function setting(name)
  found_settings = found_settings or redis.call('HMGET', key(KEY.settings), unpack(SETTINGS))
  return tonumber(found_settings[SETTING[name]] or DEFAULT[name])
end
