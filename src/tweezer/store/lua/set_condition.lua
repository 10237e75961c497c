-- set_condition: stores whether a machine can run jobs. While it is down nothing is handed out; running jobs continue.
--
-- KEYS[1] namespace
-- ARGV device:str   condition:str 'up'|'down'|'unknown': keeps the last condition   reason:str for people
--     data:bytes of the notice (JSON)
-- Returns {'ok'} | {'unknown'}: no such device
-- Events  the notices device.down and device.up, if it changes; not for up while the device is paused or under maintenance
-- include: notices, bell, maxmemory

exempt_from_maxmemory()
local record = key(KEY.device, device)
if redis.call('EXISTS', record) == 0 then return { 'unknown' } end
if condition == 'unknown' then
  redis.call('HSET', record, 'unsure', reason)
  redis.call('HSETNX', record, 'unsure_since', NOW_MS)
  return { 'ok' }
end
redis.call('HDEL', record, 'unsure', 'unsure_since')
if condition == 'down' then
  local was_down = redis.call('HEXISTS', record, 'down') == 1
  redis.call('HSET', record, 'down', reason)
  if not was_down then notify('device.down', device, data) end
elseif redis.call('HDEL', record, 'down') == 1 then
  notify_up(device)
  ring(device)
end
return { 'ok' }
