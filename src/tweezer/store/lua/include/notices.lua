-- Events that are of no batch and everybody's.
-- include: clock

-- Appends a notice: an event that is of no batch and everybody's. data: JSON.
local function notify(type, subject, data)
  redis.call('XADD', key(KEY.events), '*', 'n', type, 'i', subject .. ':' .. NOW_US, 'p', '', 't', NOW_US, 'd', data)
end

-- Notices that a device goes on, unless something else still holds it.
local function notify_up(device)
  local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'down', 'window_told')
  if row[1] or row[2] or row[3] then return end
  notify('device.up', device, '{"device":"' .. device .. '","status":"up","reason":null,"until":null}')
end
