-- Planned maintenance of a device.
-- include: notices, bell

-- Removes maintenance windows that are over, and stores the current or next one in the device's record.
local function look_out(device)
  local windows, first, found = key(KEY.windows, device), math.huge, nil
  local all = redis.call('HGETALL', windows)
  for at = 1, #all, 2 do
    local begins, ends = string.match(all[at + 1], '^(%d+) (%d+)')
    if tonumber(ends) <= NOW then
      redis.call('HDEL', windows, all[at])
    elseif tonumber(begins) < first then
      first, found = tonumber(begins), all[at + 1]
    end
  end
  if found then
    redis.call('HSET', key(KEY.device, device), 'window', found)
  else
    redis.call('HDEL', key(KEY.device, device), 'window')
  end
  return found
end

-- Handles what is due on a device: ends a pause whose time has come, and notifies of maintenance that begins or ends.
local function keep_to_plan(device)
  local name = key(KEY.device, device)
  local row = redis.call('HMGET', name, 'paused_until', 'window', 'window_told')
  local pause_ends, window, told = tonumber(row[1] or 0), row[2], row[3]
  if not window and not told and pause_ends == 0 then return end
  local resumed = pause_ends > 0 and pause_ends <= NOW
  if resumed then redis.call('HDEL', name, 'paused', 'paused_at', 'paused_until') end
  if window and tonumber(string.match(window, '^%d+ (%d+)')) <= NOW then window = look_out(device) end
  local begins, data = string.match(window or '', '^(%d+) %d+ %S+ (.*)$')
  local current = begins and tonumber(begins) <= NOW and window or nil
  if current and current ~= told then
    redis.call('HSET', name, 'window_told', current)
    notify('device.paused', device, data)
  elseif told and not current then
    redis.call('HDEL', name, 'window_told')
    resumed = true
  end
  if resumed then
    notify_up(device)
    ring(device)
  end
end
