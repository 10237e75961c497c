-- include: keys, generated/settings

-- Returns a setting or its default; times are in milliseconds.
local found_settings

local function setting(name)
  found_settings = found_settings or read_settings(key(KEY.settings))
  return found_settings[name]
end
