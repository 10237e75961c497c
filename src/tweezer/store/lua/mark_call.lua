-- mark_call: stores the state of an attempt at a call, unless another attempt has taken the call over.
--
-- KEYS[1] namespace
-- ARGV digest:str of the call   call:str, its id   attempt:str, its id, the same for the first attempt
--     state:str 'running'|'over'|'abandoned'   lease_ms:int   retry_ms:int, how long an abandoned call can be repeated
--     project:str
-- Returns {'ok'} | {'superseded'}
-- Events  none
-- include: clock, maxmemory

exempt_from_maxmemory()
local name, idempotency = key(KEY.calls, digest), key(KEY.idempotency, project, call)
if string.match(redis.call('HGET', name, call) or '', '%S*$') ~= attempt then return { 'superseded' } end

if state == 'over' then
  redis.call('HDEL', name, call)
  -- after a retry, the write of an earlier attempt may still arrive
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
