-- Jobs that are added to a batch: whether there is room for them, and writing them.
-- include: clock, lists, quotas, generated/sizes

-- The answer to a call that would exceed a quota of its project, or nil. added: amounts by quota. A quota of which
-- nothing is left refuses a call that adds nothing to it too.
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

-- How many bytes the jobs whose specs are ARGV[first…] take in Redis.
local function jobs_bytes(first)
  local total = (JOB_BYTES + #NOW_US + 1) * (#ARGV - first + 1)
  for at = first, #ARGV do total = total + #ARGV[at] end
  return total
end

-- The answer to a call for more work that is refused now, or nil.
local function refusal(project, device, jobs, bytes)
  local full = redis.call('GET', key(KEY.full))
  if full then return { 'full', full } end
  local over = over_quota(project, { queued_jobs = jobs, queued_bytes = bytes })
  if over then return over end
  local row = redis.call('HMGET', key(KEY.device, device), 'pending', 'max_backlog')
  local limit = tonumber(row[2] or 0)
  if limit > 0 and tonumber(row[1] or 0) + jobs > limit then
    return { 'full', 'the backlog of ' .. device .. ' is limited to ' .. int(limit) .. ' jobs' }
  end
  return nil
end

-- Appends the jobs whose specs are ARGV[first…], each stamped with the time of its submit.
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
