-- The end of batches that have not started in time.
-- include: batch, rules, cancel_all, counts

local EXPIRED_MAX = 10000 -- jobs that one call may cancel, unless one batch has more

local function has_expired(b)
  return b.rules and b.started == 0 and not is_over(b) and (rules_of(b).expires or math.huge) <= NOW
end

local function expire(b)
  local seconds = string.format('%.14g', rules_of(b).queue_ms / 1000)
  cancel_by_rule(b, 'T', { code = 'expired', field = 'queue_timeout_s',
    message = 'no job of the batch started within ' .. seconds .. ' s; submit it again, with a longer time if it may wait' })
  count(b.device, 'expired', 1)
end
