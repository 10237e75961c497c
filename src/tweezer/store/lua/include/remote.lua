-- Jobs that run on a machine.
-- include: job

-- Whether a job that runs on a machine waits for a holder: such jobs are first in the list of those that came back.
local function has_remote(b)
  if b.reattaches ~= 1 or b.running == 0 or b.back == 0 then return false end
  local first = redis.call('LINDEX', key(KEY.back, b.id), 0)
  return first and read_state(redis.call('HGET', key(KEY.state, b.id), first))[S.status] == 'R'
end
