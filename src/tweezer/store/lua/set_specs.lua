-- set_specs: stores the specs and properties of a device. Sequences identify their device by the name in its specs, so this
-- name must be unique. A device without workers and jobs gives its name up.
--
-- KEYS[1] namespace
-- ARGV device:str   by:str, who sets them ('worker'|'operator')
--     must_exist:str, whether the device must exist ('yes'|'no'|'either')   name:str in the specs
--     about:{field:str value:any}... of the device, including SPECS_FIELDS
-- Returns {'ok'} | {'kept'}: an operator's specs, which a worker's do not replace | {'taken', device with the name}
--     | {'unknown'} | {'exists'}
-- Events  none
-- include: lanes, maxmemory, generated/specs

exempt_from_maxmemory()
local SETTLED = 60000 -- ms after which a device without workers is not one whose worker is just starting
local record = key(KEY.device, device)
local known = redis.call('EXISTS', record) == 1
if must_exist == 'yes' and not known then return { 'unknown' } end
if must_exist == 'no' and known then return { 'exists' } end
if by == 'worker' and redis.call('HGET', record, 'specs_by') == 'operator' then return { 'kept' } end

for _, other in ipairs(redis.call('SMEMBERS', key(KEY.devices))) do
  local its = key(KEY.device, other)
  if other ~= device and redis.call('HGET', its, 'specs_name') == name then
    count_lanes(other)
    local row = redis.call('HMGET', its, 'specs_by', 'specs_at', 'lanes', 'pending', 'running')
    local waits = tonumber(row[4] or 0) + tonumber(row[5] or 0) > 0
    if row[1] ~= 'worker' or NOW_MS - tonumber(row[2]) < SETTLED or tonumber(row[3]) > 0 or waits then
      return { 'taken', other }
    end
    redis.call('HDEL', its, unpack(SPECS_FIELDS))
  end
end
redis.call('SADD', key(KEY.devices), device)
redis.call('HDEL', record, unpack(SPECS_FIELDS))
redis.call('HSET', record, 'specs_by', by, 'specs_at', NOW_MS, unpack(ARGV, about_first))
redis.call('HSETNX', record, 'created', NOW_MS)
return { 'ok' }
