-- begin_call: begins an attempt at a call that carries no idempotency key; if an equal one was abandoned, again at that.
--
-- KEYS[1] namespace
-- ARGV[1] digest of the call   [2] a new id   [3] lease (ms)   [4] how long an abandoned call is waited for (ms)
--     [5…] ids of equal calls that run for sure
-- Returns {'new', id} | {'again', id of the call}: the id is its idempotency key
-- Events  none

local name = key(KEY.calls, ARGV[1])
local running = {}
for at = 5, #ARGV do running[ARGV[at]] = true end

local call, oldest
local raw = redis.call('HGETALL', name)
for at = 1, #raw, 2 do
  local since = tonumber(string.match(raw[at + 1], '^%d+')) -- a time to come is the end of a lease
  if since + tonumber(ARGV[4]) < NOW then
    redis.call('HDEL', name, raw[at])
  elseif since <= NOW and not running[raw[at]] and (not oldest or since < oldest) then
    call, oldest = raw[at], since
  end
end
redis.call('HSET', name, call or ARGV[2], int(NOW + tonumber(ARGV[3])) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', name, int(tonumber(ARGV[3]) + tonumber(ARGV[4])))
return { call and 'again' or 'new', call or ARGV[2] }
