-- mark_calls: stores the states of attempts at calls without an idempotency key, except of those that another attempt has
-- taken over.
--
-- KEYS[1] namespace
-- ARGV expires_us:int, it is too late from then to renew leases   attempts:{equal:str call:str attempt:str state:str}..., each with the digest of equal calls, the call, itself, and
--     'running'|'over'|'abandoned'
-- Returns {'ok' | 'superseded', …}
-- Events  none
-- include: calls, maxmemory

exempt_from_maxmemory()
local reply = {}
for at = attempts_first, attempts_last, 4 do
  local equal, call, attempt, state = unpack(ARGV, at, at + 3)
  local name = key(KEY.calls, equal)
  local last, answer = string.match(redis.call('HGET', name, call) or '', '^%d+ (%S+) (.*)$')
  if last ~= attempt or state == 'running' and tonumber(NOW_US) > expires_us then
    reply[#reply + 1] = 'superseded'
  else
    if state == 'over' then
      redis.call('HDEL', name, call)
    else
      note_call(equal, call, attempt, state == 'running' and NOW + CALL_LEASE or NOW, answer)
    end
    reply[#reply + 1] = 'ok'
  end
end
return reply
