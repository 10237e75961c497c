-- settle: for each given ticket, writes the outcomes of jobs that it holds and claims the next ones, or ends the ticket.
-- An outcome that the same token has already settled is accepted again, so that a call can be repeated after a lost reply.
-- The token is checked, not the clock: a ticket with an expired lease can settle until it is reclaimed.
--
-- KEYS[1] namespace
-- ARGV tickets:{ticket:str token:str lease_ms:int most:int used_ms:int outcomes:int}[], most: jobs to hold (0 gives the ticket
--     back: drain); used_ms: lane time since the last call; outcomes: number of outcomes
--     outcomes:{index:digits kind:str payload:bytes preparation_ms:int execution_ms:int retry_ms:int result_bytes:int}...
--     of each ticket in turn, kind: done|error|canceled|prevented|retry|crash; payload: Result (of done, or measured before
--     canceled) or Fault; prevented: canceled before it ran; partial: precedes the error of the same job, with a Result of
--     its measurements
-- Returns a reply for each ticket: {'jobs', refused, {index, attempt, '1'|'0' cancel requested, spec, …}, over quota}, with
--     the whole held set | {'retired'|'yield'|'parked'|'reserved', refused, {}, over quota} | {'retired'|'stale', refused};
--     refused: outcomes that this token may not write; over quota: indices of jobs whose result was not stored because the
--     quota of the project is used up (DONE jobs then end in ERROR); reserved: the ticket keeps the device, settle again
--     when jobs may have been added
-- Events  for each job job.running if it had not begun, then job.done|error|canceled|pending; batch.*; batch.paused or
--     job.canceled (ranges) if so many jobs have failed
-- Publishes  "<batch> <index>,…" on the pool's channel for running jobs of a batch that its failures cancel
-- Gate    while shut: unavailable
-- include: gate, restart, quotas, results, job_moves, rules, failures, give_back, claim, ends_in_time, finish, maxmemory

exempt_from_maxmemory()
if is_shut() then refuse_while_shut() end
local HELD_MAX = 1000 -- jobs that a ticket may hold; unpack fails near 8,000
local ENDING = { done = 'D', error = 'E', canceled = 'C', prevented = 'C' }

-- Updates the average duration (ms) of a device's jobs: an exponentially weighted mean with a half-life of five jobs.
local function note_pace(device, jobs, worked)
  local row = device_row(device)
  local mean = row.job_ms or worked / jobs
  local now = int(math.floor(mean + (worked / jobs - mean) * (1 - 0.87 ^ jobs) + 0.5))
  if tonumber(now) ~= row.job_ms then
    redis.call('HSET', key(KEY.device, device), 'job_ms', now)
    row.job_ms = tonumber(now)
  end
end

-- Counts a result and returns true if the project's quota allows it. Results of a machine are always stored.
local function may_keep(b, bytes)
  local quota = read_quotas(b.project).result_bytes
  if quota.limit > 0 and quota.used + bytes > quota.limit and b.reattaches ~= 1 then return false end
  quota.used = quota.used + bytes
  keep_result(b, bytes)
  return true
end

local function quota_fault(b, bytes)
  local quota = read_quotas(b.project).result_bytes
  return string.format('{"code":"quota","message":"result_bytes: project %s may keep %s bytes of results; %s are kept and '
    .. 'this result has %s; delete batches whose results are no longer needed, or ask the operator for a higher limit, '
    .. 'then submit the job again"}', b.project, int(quota.limit), int(quota.used), int(bytes))
end

-- Applies the outcomes in ARGV[first…] to held jobs. Returns the number of refused outcomes, and the indices of jobs whose
-- result was not stored.
local function apply_outcomes(b, t, held, first, indices, raw)
  local ended, states, results, faults, back, over, refused = {}, {}, {}, {}, {}, {}, 0
  local done, worked = 0, 0
  local function apply(at, st)
    local index, kind, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    if kind == 'partial' then
      if held[index] and not JOB_OVER[st[S.status]] then
        if may_keep(b, tonumber(ARGV[at + 6])) then put(results, index, payload) else over[#over + 1] = index end
      end
      return
    end
    if not held[index] then
      if st[S.token] ~= t.token then refused = refused + 1 end
      return
    end
    held[index] = nil
    ended[#ended + 1] = index
    if JOB_OVER[st[S.status]] then refused = refused + 1; return end
    if st[S.status] == 'P' then
      begin_job(b, index, st, t.token, 'on_device')
      st[S.begun] = int(NOW - tonumber(ARGV[at + 4]))
    end
    st[S.token], st[S.preparation], st[S.execution] = t.token, ARGV[at + 3], ARGV[at + 4]
    local to, wait = ENDING[kind], tonumber(ARGV[at + 5])
    if not to then
      local counter, limit = S.transient, b.retries
      if kind == 'crash' then counter, limit = S.crashes, CRASH_MAX - 1 end
      local failures = number_of(st, counter) + 1
      st[counter] = int(failures)
      if st[S.cancel] ~= '-' then to = 'C' elseif failures > limit or not use_retry(b) then to = 'E' end
    end
    if payload ~= '' and (kind == 'done' or kind == 'canceled') and not may_keep(b, tonumber(ARGV[at + 6])) then
      over[#over + 1] = index
      if kind == 'done' then to, kind, payload = 'E', 'error', quota_fault(b, tonumber(ARGV[at + 6])) else payload = '' end
    end
    if to then
      end_job(b, index, st, to)
      if kind == 'done' then
        done, worked = done + 1, worked + tonumber(ARGV[at + 3]) + tonumber(ARGV[at + 4])
      elseif kind == 'prevented' and st[S.outcome] ~= '-' then
        st[S.outcome] = kind
      end
      if payload ~= '' then put((kind == 'done' or kind == 'canceled') and results or faults, index, payload) end
    else
      requeue_job(b, index, st, kind, payload)
      if wait > 0 then
        redis.call('ZADD', key(KEY.delay, b.id), int(NOW + wait), index)
        b.delayed = b.delayed + 1
      else
        back[#back + 1] = index
      end
    end
    put(states, index, table.concat(st, ' '))
  end
  for i = 1, #indices do apply(first + 7 * (i - 1), read_state(raw[i])) end
  each_thousand('SREM', key(KEY.held, b.id, t.n), ended)
  each_thousand('HSET', key(KEY.state, b.id), states)
  each_thousand('HSET', key(KEY.result, b.id), results)
  each_thousand('HSET', key(KEY.fault, b.id), faults)
  if #back > 0 then come_back(b, back) end
  if #ended > 0 then b.failures, b.crashes = 0, 0 end
  if done > 0 then
    b.worked = b.worked + worked
    note_pace(b.device, done, worked)
  end
  return refused, over
end

-- Whether another ticket should have the lane now: this one has used its quantum and would rank after it.
local function should_yield(b, t)
  if t.used < setting('quantum') or b.exclusive == 1 then return false end
  local best = redis.call('ZRANGE', key(KEY.ready, b.device), 0, 0, 'WITHSCORES')
  if not best[2] then return false end
  local base, virtual = rank(b)
  local again = math.max(base + t.used - setting('quantum'), virtual) + PENALTY[b.priority]
  return tonumber(best[2]) < again
end

-- The jobs that the ticket has to run: those that it holds and, if it continues, those that it claims.
local function next_jobs(b, t, most, held)
  local left, fresh = 0, nil
  for _ in pairs(held) do left = left + 1 end
  if left + waiting(b) + b.delayed == 0 then return {} end
  if most == 0 or b.status == 'S' or is_paused(b.device) or should_yield(b, t) or not ends_in_time(b) then
    take_back(b, t, most == 0 and 'drain' or 'stop')
  else
    fresh = claim(b, t, most, left)
  end
  return held_jobs(b, t, fresh)
end

-- Whether the ticket keeps its device without work, because jobs may be added to its batch.
local function may_reserve(b, most)
  return b.exclusive == 1 and b.open == 1 and most > 0 and not is_over(b) and b.status ~= 'S'
    and waiting(b) + b.delayed == 0 and not is_withheld(b.device)
end

local function settle(name, token, lease_ms, most, used_ms, first, outcomes)
  local id, n = split_ticket(name)
  local b, t = load_batch(id, n)
  local indices = {}
  for at = first, first + 7 * (outcomes - 1), 7 do indices[#indices + 1] = ARGV[at] end
  local raw = outcomes > 0 and redis.call('HMGET', key(KEY.state, id), unpack(indices)) or {}
  if not b or not t or t.token ~= token then
    local refused = 0
    for i = 1, outcomes do
      if not raw[i] or read_state(raw[i])[S.token] ~= token then refused = refused + 1 end
    end
    local word = (refused > 0 or outcomes == 0) and 'stale' or 'retired'
    if b and word == 'stale' then count(b.device, 'stale', 1) end
    return { word, refused }
  end

  local held = {}
  for _, index in ipairs(redis.call('SMEMBERS', key(KEY.held, id, n))) do held[index] = true end
  local refused, over = apply_outcomes(b, t, held, first, indices, raw)
  limit_failures(b)
  t.used = t.used + used_ms
  local word, jobs = 'jobs', next_jobs(b, t, most, held)
  if #jobs > 0 then
    if t.used >= setting('quantum') then
      settle_service(b, t)
      charge(b, rank(b) + setting('quantum'))
      t.used = 0
    end
    stop_idling(b)
    write_ticket(b, t)
    redis.call('ZADD', key(KEY.leases, b.device), int(NOW + lease_ms), t.name)
  elseif may_reserve(b, most) then
    word = 'reserved'
    if b.reserved == 0 then b.reserved = NOW end
    write_ticket(b, t)
    redis.call('ZADD', key(KEY.leases, b.device), int(NOW + lease_ms), t.name)
  else
    word = requeue_or_retire(b, t)
  end
  conclude(b)
  save(b)
  return { word, refused, jobs, over }
end

local replies, first = {}, outcomes_first
for at = tickets_first, tickets_last, 6 do
  local lease_ms, most, used_ms = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local outcomes = tonumber(ARGV[at + 5])
  replies[#replies + 1] = settle(ARGV[at], ARGV[at + 1], lease_ms, math.min(most, HELD_MAX), used_ms, first, outcomes)
  first = first + 7 * outcomes
end
save_totals()
return replies
