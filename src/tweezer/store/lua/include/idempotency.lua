-- Idempotency keys: repeated calls.
-- include: settings

-- Returns the earlier reply to a call with this idempotency key, 'conflict' if its content differs, or nil.
local function answered(project, idempotency, digest)
  if idempotency == '' then return nil end
  local before = redis.call('GET', key(KEY.idempotency, project, idempotency))
  if not before then return nil end
  local seen, answer = string.match(before, '^(%S+) (.*)$')
  if seen ~= digest then return { 'conflict' } end
  return { 'repeated', answer }
end

local function remember(project, idempotency, digest, answer)
  if idempotency == '' then return end
  redis.call('SET', key(KEY.idempotency, project, idempotency), digest .. ' ' .. answer,
    'PX', int(setting('idempotency')))
end
