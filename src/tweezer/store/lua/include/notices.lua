-- Notices: events for all projects that do not belong to a batch.
-- include: clock

-- Appends a notice. data: JSON.
local function notify(type, subject, data)
  redis.call('XADD', key(KEY.events), '*', 'n', type, 'i', subject .. ':' .. NOW_US, 'p', '', 't', NOW_US, 'd', data)
end

-- Appends the notice that a device is up, unless something else still keeps it from running.
local function notify_up(device)
  local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'down', 'window_told')
  if row[1] or row[2] or row[3] then return end
  notify('device.up', device, '{"device":"' .. device .. '","status":"up","reason":null,"until":null}')
end
