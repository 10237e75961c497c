-- Repeated calls.
-- include: settings

-- A call with an idempotency key answers what it answered before, or 'conflict' for another body.
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
