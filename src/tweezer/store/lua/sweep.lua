-- sweep: handles what is due: batches that wait for others that have ended, open batches past their deadline, batches that are
-- late or expire, expired leases, tickets whose time has come, workers that are gone. It runs each second; any number of
-- processes may run it.
--
-- KEYS[1] namespace
-- ARGV most:int items of each kind per call   memory:str, bytes that Redis has for work, or '' if unknown
-- Returns {'ok', timed out, made ready, {{ticket taken back, the lane that held it}, …}, '1' if more batches are late or
--     expire, or wait for others that have ended, else '0'}
-- Events  the notices device.paused and device.up of planned maintenance, and device.up at the end of a pause;
--     job.canceled (ranges) and batch.canceled of a batch that waits for one that has not ended as required, batch.done of a
--     closed one without jobs; batch.idle: half its idle limit, at most a minute, before it times out; batch.timed_out;
--     batch.late; job.canceled (ranges) of a batch that expires; those of reclaims: job.pending, job.canceled, job.error,
--     batch.*
-- Gate    while shut no batch is released, warned, late or timed out, and no lease is reclaimed
-- include: gate, lanes, maintenance, reclaim, deadlines, expiry, releases, maxmemory

local WARN_MAX = 60000

exempt_from_maxmemory()
local timed_out, readied, reclaimed = 0, 0, {}
if memory ~= '' and int(setting('memory')) ~= memory then redis.call('HSET', key(KEY.settings), 'memory', memory) end
handle_releases(most)
local idle = key(KEY.idle)
local past = is_shut() and {} or redis.call('ZRANGEBYSCORE', idle, '-inf', NOW_MS, 'LIMIT', 0, most)
for _, id in ipairs(past) do
  redis.call('ZREM', idle, id)
  local b, problem = load_batch(id)
  if problem then redis.call('ZADD', idle, int(NOW + LEAVE_ALONE), id) end
  if b and b.open == 1 and b.pending == 0 and b.running == 0 and (b.status == 'P' or b.status == 'R') then
    b.open, b.fate = 0, 'T'
    finish(b)
    timed_out = timed_out + 1
  end
end
-- A batch without work is warned once before it times out.
local soon = is_shut() and {} or redis.call('ZRANGEBYSCORE', idle, NOW_MS, int(NOW + WARN_MAX), 'WITHSCORES',
  'LIMIT', 0, most)
for at = 1, #soon, 2 do
  local b, deadline = load_batch(soon[at]), tonumber(soon[at + 1])
  if b and b.open == 1 and b.warned ~= deadline and NOW >= deadline - math.min(b.idle / 2, WARN_MAX) then
    b.warned = deadline
    emit(b, b.status .. 'I')
    finish(b)
  end
end

-- Reports a batch that is late, and ends one that expires.
local function pass_deadline(id)
  redis.call('ZREM', key(KEY.deadlines), id)
  local b, problem = load_batch(id)
  if problem then redis.call('ZADD', key(KEY.deadlines), int(NOW + LEAVE_ALONE), id) end
  if not b or is_over(b) or b.started > 0 then return 0, 0 end
  local rules, jobs = rules_of(b), b.pending
  local late_at = rules.late_ms and not rules.late and b.not_before + rules.late_ms
  if late_at and late_at <= NOW and late_at < (rules.expires or math.huge) then
    set_rule(b, 'late', 1)
    emit(b, b.status .. 'L')
    count(b.device, 'late', 1)
  end
  local expires = has_expired(b)
  if expires then expire(b) else enter_deadline(b) end
  finish(b)
  return expires and 1 or 0, expires and jobs or 0
end

local passed = is_shut() and {} or redis.call('ZRANGEBYSCORE', key(KEY.deadlines), '-inf', NOW_MS, 'LIMIT', 0, most)
local more, canceled = #passed == most, 0
for _, id in ipairs(passed) do
  if canceled >= EXPIRED_MAX then
    more = true
    break
  end
  local expired, jobs = pass_deadline(id)
  timed_out, canceled = timed_out + expired, canceled + jobs
end
for _, device in ipairs(redis.call('SMEMBERS', key(KEY.devices))) do
  if redis.call('EXISTS', key(KEY.device, device)) == 1 then -- else no worker or operator has created the device
    count_lanes(device)
    keep_to_plan(device)
    if not is_shut() then reclaim_expired(device, most, reclaimed) end
    readied = readied + ready_due(device, most)
    if redis.call('EXISTS', key(KEY.ready, device)) == 1 and not is_taken(device) then ring(device) end
  end
end
save_totals()
more = more or not is_shut() and redis.call('ZCOUNT', key(KEY.releases), '-inf', NOW_MS) > 0
return { 'ok', timed_out, readied, reclaimed, more and '1' or '0' }
