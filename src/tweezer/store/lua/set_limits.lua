-- set_limits: sets the limits of projects to those in the ledger.
--
-- KEYS[1] namespace
-- ARGV limits:any..., a group for each project: its id, its limit for each quota in the order of QUOTAS; '' is the default
-- Returns {'ok'}
-- Events  none
-- include: keys, maxmemory, generated/quotas

exempt_from_maxmemory()
for first = limits_first, limits_last, 1 + #QUOTAS do
  local record = key(KEY.project, ARGV[first])
  for at, quota in ipairs(QUOTAS) do
    local field, limit = 'max:' .. quota.name, ARGV[first + at]
    if limit == '' then
      redis.call('HDEL', record, field)
    elseif redis.call('HGET', record, field) ~= limit then
      redis.call('HSET', record, field, limit)
    end
  end
end
return { 'ok' }
