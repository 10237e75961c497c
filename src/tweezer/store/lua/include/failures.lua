-- The failure threshold of a batch.
-- include: rules, cancel_all, changes, counts

-- Pauses or cancels a batch if so many jobs have failed, and starts the count anew. Must be called after jobs may have
-- failed, before the script hands out others.
local function limit_failures(b)
  if not b.rules or b.error == b.was_error or b.fate then return end
  local rules = rules_of(b)
  local failed = b.error - (rules.failed or 0)
  if not rules.failures or failed < rules.failures then return end
  local ends_now = b.open == 0 and b.pending + b.running == 0
  if ends_now and rules.on_failures ~= 'cancel' then return end
  set_rule(b, 'failed', b.error)
  count(b.device, 'stopped', 1)
  local number = failed == 1 and '1 job' or int(failed) .. ' jobs'
  if rules.on_failures == 'cancel' then
    cancel_by_rule(b, 'C', { code = 'failures', field = 'failure_threshold',
      message = number .. ' failed, so the batch was cancelled; correct the failed jobs, then submit the rest again' })
    return
  end
  put(b.changed, 'paused', NOW_MS .. ' ' .. BY_RULE .. '\nfailure_threshold: ' .. number
    .. ' failed; resume the batch to continue, or cancel it')
  touch(b)
  if b.status ~= 'S' then move_batch(b, 'S') end
end
