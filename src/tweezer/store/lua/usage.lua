-- usage: returns the project's use of its quotas, and its limits as submit and settle apply them.
--
-- KEYS[1] namespace
-- ARGV project:str
-- Returns {name, used, limit (0: unlimited), '1' if the limit is not the default, else '0'}, …
-- Events  none
-- include: quotas

local rows, reply = read_quotas(project), {}
for _, quota in ipairs(QUOTAS) do
  local own = redis.call('HEXISTS', key(KEY.project, project), 'max:' .. quota.name)
  reply[#reply + 1] = { quota.name, int(rows[quota.name].used), int(rows[quota.name].limit), int(own) }
end
return reply
