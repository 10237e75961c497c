-- set_condition: says whether a machine can run jobs. While it is down nothing is handed out; what runs goes on.
--
-- KEYS[1] namespace
-- ARGV[1] device   [2] 'up'|'down'|'unknown' (what was known before holds)   [3] why, for people   [4] data of the
--     notice (JSON)
-- Returns {'ok'} | {'unknown'}: no such device
-- Events  the notices device.down and device.up, when it changes; none for up while an operator holds it

exempt_from_maxmemory()
local device, to = key(KEY.device, ARGV[1]), ARGV[2]
if redis.call('EXISTS', device) == 0 then return { 'unknown' } end
if to == 'unknown' then
  redis.call('HSET', device, 'unsure', ARGV[3])
  redis.call('HSETNX', device, 'unsure_since', NOW_MS)
  return { 'ok' }
end
redis.call('HDEL', device, 'unsure', 'unsure_since')
if to == 'down' then
  local was_down = redis.call('HEXISTS', device, 'down') == 1
  redis.call('HSET', device, 'down', ARGV[3])
  if not was_down then notify('device.down', ARGV[1], ARGV[4]) end
elseif redis.call('HDEL', device, 'down') == 1 then
  notify_up(ARGV[1])
  ring(ARGV[1])
end
return { 'ok' }
