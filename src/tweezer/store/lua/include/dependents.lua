-- The batches that depend on one that has ended. Its end is what `end_of` returns, or '' if it was discarded.
-- include: gate, restart, conclude, issue, deadlines, cancel_all

local DEPENDENTS_MAX, DEPENDENTS_JOBS_MAX = 50, 10000 -- handled by one script; the sweep handles the rest
local dependents_left, dependents_jobs_left = DEPENDENTS_MAX, DEPENDENTS_JOBS_MAX

local function is_satisfied(when, ended)
  if ended == '' then return false end
  if when == 'D' then return string.sub(ended, 1, 1) == 'D' end
  return when == 'X' or ended ~= 'D'
end

local STATUSES = { D = 'DONE', E = 'ERROR', C = 'CANCELED', T = 'TIMED_OUT' }

-- Returns the fault of a batch that cannot start, because another one did not end as required.
local function dependency_fault(parent, ended)
  local status, problem = STATUSES[string.sub(ended, 1, 1)], 'was deleted; submit this batch again without it'
  if ended == 'D' then
    problem = 'ended in DONE without a failed job, so this batch is not needed'
  elseif status then
    problem = 'ended in ' .. status .. ' instead of DONE; restart it, then submit this batch again to depend on the new one'
  end
  return { code = 'dependency', field = 'depends_on', message = 'batch ' .. parent .. ' ' .. problem }
end

-- Returns the batches that a new one waits for, as in its field `parents`; its fault if one of those that it depends on
-- did not end as required, or nil; and the reply if the project lacks some of them, or nil.
-- ARGV[first…last]: id, letter of When, and how it ended according to the ledger, or ''.
local function look_at_parents(project, first, last)
  local waits_for, fault, unknown = {}, nil, { 'unknown_parents' }
  for at = first, last, 3 do
    local id, when, ended = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local parent = load_batch(id)
    if parent and parent.project == project then ended = is_over(parent) and end_of(parent) or nil end
    if ended == '' then
      unknown[#unknown + 1] = id
    elseif not ended then
      waits_for[#waits_for + 1] = id .. ':' .. when
    elseif not is_satisfied(when, ended) then
      fault = fault or dependency_fault(id, ended)
    end
  end
  if #unknown == 1 then return waits_for, fault end
  if is_shut() then refuse_while_shut() end
  return waits_for, fault, unknown
end

-- Lets a batch start that waits for no more batches.
local function release_dependent(b)
  redis.call('HDEL', key(KEY.batch, b.id), 'parents')
  b.waits = false
  touch(b)
  set_deadlines(b)
  if b.status ~= 'S' then issue_tickets(b) end
end

-- Applies the end of a batch to one that waits for it.
local function apply_end(b, parent, ended)
  local parents = redis.call('HGET', key(KEY.batch, b.id), 'parents') or ''
  local at = string.find(parents, parent .. ':', 1, true)
  if not at then return end
  local when = string.sub(parents, at + 37, at + 37)
  local left = string.gsub(string.sub(parents, 1, at - 1) .. string.sub(parents, at + 39), ' $', '')
  if not is_satisfied(when, ended) then
    cancel_by_rule(b, 'C', dependency_fault(parent, ended))
  elseif left == '' then
    release_dependent(b)
  else
    put(b.changed, 'parents', left)
    touch(b)
  end
  conclude(b)
  save(b)
end

-- Applies the end of a batch to its dependents, in the order of their creation, as far as this script may. Those that
-- cannot be read for now are left for the sweep, too.
local function handle_end(parent, ended)
  local name, unreadable = key(KEY.dependents, parent), 0
  while not is_shut() and dependents_left > 0 and dependents_jobs_left > 0 do
    local id = redis.call('ZRANGE', name, unreadable, unreadable)[1]
    if not id then break end
    dependents_left = dependents_left - 1
    local b, problem = load_batch(id)
    if problem then
      unreadable = unreadable + 1
    else
      redis.call('ZREM', name, id)
      if b and not is_over(b) then
        dependents_jobs_left = dependents_jobs_left - b.pending
        apply_end(b, parent, ended)
      end
    end
  end
  local left = redis.call('ZCARD', name)
  if left > 0 then
    redis.call('ZADD', key(KEY.releases), int(NOW + (left == unreadable and 5000 or 0)), parent .. ':' .. ended)
  end
end

-- Handles the ends of this script. A dependent that is cancelled ends, too, and is appended to them.
local function handle_ends()
  local at = 1
  while ended_batches[at] do
    handle_end(ended_batches[at][1], ended_batches[at][2])
    at = at + 1
  end
  ended_batches = {}
end
