-- mark_call: says how an attempt at a call stands, unless another one has taken it over.
--
-- KEYS[1] namespace
-- ARGV digest:str of the call   call:str, its id   attempt:str, its id, the same if it is the first
--     state:str 'running'|'over'|'abandoned'   lease_ms:int   retry_ms:int, how long an abandoned call is waited for
--     project:str
-- Returns {'ok'} | {'superseded'}
-- Events  none
-- include: clock, maxmemory

exempt_from_maxmemory()
local name, idempotency = key(KEY.calls, digest), key(KEY.idempotency, project, call)
if string.match(redis.call('HGET', name, call) or '', '%S*$') ~= attempt then return { 'superseded' } end

if state == 'over' then
  redis.call('HDEL', name, call)
  -- an earlier attempt may still be on its way to write
  if attempt == call then redis.call('DEL', idempotency) else redis.call('PEXPIRE', idempotency, int(retry_ms)) end
  return { 'ok' }
end
local since = NOW
if state == 'running' then
  since = NOW + lease_ms
else
  redis.call('PEXPIRE', idempotency, int(retry_ms))
end
redis.call('HSET', name, call, int(since) .. ' ' .. attempt)
redis.call('PEXPIRE', name, int(lease_ms + retry_ms))
return { 'ok' }
