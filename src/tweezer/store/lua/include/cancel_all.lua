-- The cancel of a batch with all its jobs.
-- include: end_pending, cancel

-- Closes a batch, cancels its pending jobs and requests the end of its running jobs. When these have ended, the batch ends
-- in `to`. by: the requester, which `must` be recorded or not.
local function cancel_all(b, to, by, must)
  b.open = 0
  b.fate = b.fate or to
  for _, job in ipairs(end_pending(b, 'C')) do request_cancel(b, job[1], job[2]) end
  note_attempt(b.id, '*', by, must)
end

-- Cancels a batch because of one of its rules, whose fault its jobs show.
local function cancel_by_rule(b, to, fault)
  redis.call('HSETNX', key(KEY.batch, b.id), 'fault', cjson.encode(fault))
  cancel_all(b, to, BY_RULE, true)
end
