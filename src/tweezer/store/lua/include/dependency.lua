-- Whether the end of a batch lets one start that depends on it. ended: what `end_of` returns, or '' if it was discarded.

local function is_satisfied(when, ended)
  if ended == '' then return false end
  if when == 'D' then return string.sub(ended, 1, 1) == 'D' end
  return when == 'X' or ended ~= 'D'
end

-- Returns the fault of a batch that cannot start, because another one did not end as required.
local function dependency_fault(parent, ended)
  local statuses = { D = 'DONE', E = 'ERROR', C = 'CANCELED', T = 'TIMED_OUT' }
  local status, problem = statuses[string.sub(ended, 1, 1)], 'was deleted; submit this batch again without it'
  if ended == 'D' then
    problem = 'ended in DONE without a failed job, so this batch is not needed'
  elseif status then
    problem = 'ended in ' .. status .. ' instead of DONE; restart it, then submit this batch again to depend on the new one'
  end
  return { code = 'dependency', field = 'depends_on', message = 'batch ' .. parent .. ' ' .. problem }
end
