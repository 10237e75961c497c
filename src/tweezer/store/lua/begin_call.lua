-- begin_call: begins an attempt at a call without an idempotency key, or at an equal call that was abandoned.
--
-- KEYS[1] namespace
-- ARGV digest:str of the call   new_id:str   lease_ms:int   retry_ms:int, how long an abandoned call can be repeated
--     running:str..., ids of equal calls that are known to be running
-- Returns {'new', id} | {'again', id of the call}: the id is its idempotency key
-- Events  none
-- include: clock

local name = key(KEY.calls, digest)
local is_running = {}
for at = running_first, running_last do is_running[ARGV[at]] = true end

local call, oldest
local raw = redis.call('HGETALL', name)
for at = 1, #raw, 2 do
  local since = tonumber(string.match(raw[at + 1], '^%d+')) -- if in the future, the end of a lease
  if since + retry_ms < NOW then
    redis.call('HDEL', name, raw[at])
  elseif since <= NOW and not is_running[raw[at]] and (not oldest or since < oldest) then
    call, oldest = raw[at], since
  end
end
redis.call('HSET', name, call or new_id, int(NOW + lease_ms) .. ' ' .. new_id)
redis.call('PEXPIRE', name, int(lease_ms + retry_ms))
return { call and 'again' or 'new', call or new_id }
