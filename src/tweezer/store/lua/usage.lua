-- usage: what a project uses of its quotas, and its limits as submit and settle apply them.
--
-- KEYS[1] namespace
-- ARGV[1] project
-- Returns {name, used, limit (0: none), '1' if the limit is its own, else '0'}, …
-- Events  none

local rows, reply = read_quotas(ARGV[1]), {}
for _, quota in ipairs(QUOTAS) do
  local own = redis.call('HEXISTS', key(KEY.project, ARGV[1]), 'max:' .. quota.name)
  reply[#reply + 1] = { quota.name, int(rows[quota.name].used), int(rows[quota.name].limit), int(own) }
end
return reply
