-- mark_call: says how an attempt at a call stands, unless another one has taken it over.
--
-- KEYS[1] namespace
-- ARGV[1] digest of the call   [2] id of the call   [3] id of the attempt, the same if it is the first
--     [4] 'running' | 'over' | 'abandoned'   [5] lease (ms)   [6] how long an abandoned call is waited for (ms)
--     [7] project
-- Returns {'ok'} | {'superseded'}
-- Events  none

exempt_from_maxmemory()
local name = key(KEY.calls, ARGV[1])
local idempotency = key(KEY.idempotency, ARGV[7], ARGV[2])
local attempt = string.match(redis.call('HGET', name, ARGV[2]) or '', '%S*$')
if attempt ~= ARGV[3] then return { 'superseded' } end

if ARGV[4] == 'over' then
  redis.call('HDEL', name, ARGV[2])
  -- an earlier attempt may still be on its way to write
  if ARGV[3] == ARGV[2] then redis.call('DEL', idempotency) else redis.call('PEXPIRE', idempotency, ARGV[6]) end
  return { 'ok' }
end
local since = NOW
if ARGV[4] == 'running' then
  since = NOW + tonumber(ARGV[5])
else
  redis.call('PEXPIRE', idempotency, ARGV[6])
end
redis.call('HSET', name, ARGV[2], int(since) .. ' ' .. attempt)
redis.call('PEXPIRE', name, int(tonumber(ARGV[5]) + tonumber(ARGV[6])))
return { 'ok' }
