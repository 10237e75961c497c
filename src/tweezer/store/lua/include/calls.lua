-- Calls without an idempotency key: an attempt repeats an equal call if that was abandoned.
-- include: clock, generated/calls

-- Stores the state of a call: its answer, its last attempt, and until when the lease of that runs or since when it is
-- abandoned.
local function note_call(equal, call, attempt, since, answer)
  local name = key(KEY.calls, equal)
  redis.call('HSET', name, call, int(since) .. ' ' .. attempt .. ' ' .. answer)
  redis.call('PEXPIRE', name, CALL_LEASE + CALL_RETRY)
end

-- Begins a call that took effect.
local function begin_call(equal, attempt, answer)
  if equal ~= '' then note_call(equal, attempt, attempt, NOW + CALL_LEASE, answer) end
end

-- Returns the reply to an attempt that repeats a call, the oldest of those that were abandoned, or nil. It is too late for
-- an attempt that Redis executes after `expires_us`: its caller has given up, and may have repeated it.
-- ARGV[first…last]: equal calls that are known to be running.
local function repeated(equal, attempt, expires_us, first, last)
  if equal == '' then return nil end
  if tonumber(NOW_US) > expires_us then return { 'late', NOW_US } end
  local name, is_running = key(KEY.calls, equal), {}
  for at = first, last do is_running[ARGV[at]] = true end
  local oldest, call, answer = NOW, nil, nil
  local raw = redis.call('HGETALL', name)
  for at = 1, #raw, 2 do
    local since, its_answer = string.match(raw[at + 1], '^(%d+) %S+ (.*)$') -- if in the future, the end of a lease
    since = tonumber(since or 0)
    if since + CALL_RETRY < NOW then
      redis.call('HDEL', name, raw[at])
    elseif since <= oldest and not is_running[raw[at]] then
      oldest, call, answer = since, raw[at], its_answer
    end
  end
  if not call then return nil end
  note_call(equal, call, attempt, NOW + CALL_LEASE, answer)
  return { 'repeated', answer, call }
end
