-- Adds jobs to a batch, if the limits allow it.
-- include: clock, lists, device, quotas, generated/sizes

-- Returns the reply to a call that would exceed a quota of its project, or nil. added: amounts by quota. A quota that is
-- used up refuses even a call that adds nothing to it.
local function over_quota(project, added)
  local rows = read_quotas(project)
  for _, quota in ipairs(QUOTAS) do
    local it, more = rows[quota.name], added[quota.name] or 0
    if it.limit > 0 and it.used + math.max(more, 1) > it.limit then
      return { 'quota', project, quota.name, int(it.limit), int(it.used), int(more) }
    end
  end
  return nil
end

-- The size in Redis, in bytes, of jobs whose specs have so many bytes in all.
local function size_of_jobs(jobs, bytes) return bytes + (JOB_BYTES + #NOW_US + 1) * jobs end

-- The size in Redis, in bytes, of jobs whose specs are ARGV[first…].
local function jobs_bytes(first)
  local bytes = 0
  for at = first, #ARGV do bytes = bytes + #ARGV[at] end
  return size_of_jobs(#ARGV - first + 1, bytes)
end

-- Returns the reply to a call that would add too much work, or nil.
local function refusal(project, device, jobs, bytes)
  local full = redis.call('GET', key(KEY.full))
  if full then return { 'full', full } end
  local over = over_quota(project, { queued_jobs = jobs, queued_bytes = bytes })
  if over then return over end
  local row = device_row(device)
  if row.max_backlog > 0 and row.pending + jobs > row.max_backlog then
    return { 'full', 'the backlog of ' .. device .. ' is limited to ' .. int(row.max_backlog) .. ' jobs' }
  end
  return nil
end

-- Appends jobs whose specs are ARGV[first…], each with the time of its submit.
local function add_jobs(b, first, bytes)
  b.bytes = b.bytes + bytes
  local row = {}
  for at = first, #ARGV do
    row[#row + 1] = int(b.jobs)
    row[#row + 1] = NOW_US .. ' ' .. ARGV[at]
    b.jobs = b.jobs + 1
    b.pending = b.pending + 1
  end
  each_thousand('HSET', key(KEY.spec, b.id), row)
end
