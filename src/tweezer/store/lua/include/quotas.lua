-- include: settings, generated/quotas

-- The use and the limit (0: unlimited) of a project's quotas, by name, before this script's changes.
local quota_rows = {}

local function read_quotas(project)
  if quota_rows[project] then return quota_rows[project] end
  local row, found = redis.call('HMGET', key(KEY.project, project), unpack(QUOTA_FIELDS)), {}
  for _, quota in ipairs(QUOTAS) do
    local used, limit = 0, tonumber(row[quota.max] or nil)
    for _, at in ipairs(quota.counters) do used = used + tonumber(row[at] or 0) end
    if not limit then
      limit = setting(quota.name)
      local memory = setting('memory')
      if quota.name == 'queued_bytes' and limit > 0 and memory > 0 then
        limit = math.min(limit, math.floor(memory / MEMORY_SHARES))
      end
    end
    found[quota.name] = { used = used, limit = limit }
  end
  quota_rows[project] = found
  return found
end
