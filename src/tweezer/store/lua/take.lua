-- take: reclaims expired leases, readies due tickets, and grants the best tickets, each with a token and its first job. It
-- issues more tickets for a batch with more waiting jobs than tickets, and rings the bell again if ready tickets remain. On
-- an exclusive device one ticket is granted at a time. A batch that cannot end before the next maintenance of the device
-- is skipped. A batch whose queue timeout has passed ends instead. A job that a machine already has is handed out even
-- if the device is paused.
--
-- KEYS[1] namespace
-- ARGV device:str   lease_ms:int   lanes:str..., free lanes, one ticket each
-- Returns {'ok'|'paused'|'shut', ms until something is due or -1, {ticket left alone, …}, {{ticket taken back, its lane}, …},
--     {ticket, token, project, doc, exclusive, {index, attempt, '1'|'0' cancel requested, spec, …}}, …};
--     shut: Redis has restarted, and nothing is granted until the gate opens, at the latest after the returned time
-- Events  batch.running, job.running; job.canceled (ranges) and batch.timed_out of a batch that expires; those of reclaims:
--     job.pending, job.canceled, job.error, batch.*
-- Gate    while shut nothing is granted, reclaimed or readied
-- include: gate, reclaim, claim, expiry, ends_in_time, issue, maxmemory

exempt_from_maxmemory()
if is_shut() then return { 'shut', int(shut_for()), {}, {} } end
local ready, due, leases = key(KEY.ready, device), key(KEY.due, device), key(KEY.leases, device)
local reclaimed = {}
reclaim_expired(device, 20, reclaimed)
ready_due(device, 200)

local function wait()
  local soonest = -1
  for _, waiting in ipairs({ due, leases }) do
    local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    if first[2] then
      local left = math.max(tonumber(first[2]) - NOW, 0)
      if soonest < 0 or left < soonest then soonest = left end
    end
  end
  return int(soonest)
end

local paused = is_paused(device)
if paused and not device_row(device).reattaches then return { 'paused', wait(), {}, reclaimed } end

local PASS_MAX = 1000
local reply, left_alone = { paused and 'paused' or 'ok', '-1', {}, reclaimed }, {}
local looked_at, passed, expired = 0, 0, 0

-- Takes a ready ticket off the queue, or skips it. Returns a grant, or nil if it has no job for now.
local function open_ticket(name, score, lane)
  local id, n = split_ticket(name)
  local b, t = load_batch(id, n, 'doc')
  if b and t and not has_remote(b) and (paused or not ends_in_time(b)) then
    passed = passed + 1
    return nil
  end
  if b and t and has_expired(b) then
    if expired < EXPIRED_MAX then
      expired = expired + b.pending
      expire(b)
      finish(b)
    else
      passed = passed + 1
    end
    return nil
  end
  redis.call('ZREM', ready, name)
  if t and not b then
    redis.call('ZADD', due, int(NOW + LEAVE_ALONE), name)
    left_alone[#left_alone + 1] = name
    return nil
  end
  if not t then return nil end
  advance(b, score - PENALTY[b.priority])
  b.token = math.max(b.token + 1, tonumber(NOW_US))
  t.token, t.lane, b.holder = int(b.token), lane, lane
  local grant
  local jobs = held_jobs(b, t, claim(b, t, 1, 0))
  if #jobs == 0 then
    requeue_or_retire(b, t)
  else
    stop_idling(b)
    write_ticket(b, t)
    redis.call('ZADD', leases, int(NOW + lease_ms), name)
    if waiting(b) > 0 then issue_tickets(b) end
    grant = { name, t.token, b.project, b.extra, int(b.exclusive), jobs }
  end
  conclude(b)
  save(b)
  return grant
end

for at = lanes_first, lanes_last do
  local grant
  while not grant and looked_at - passed < 100 and passed < PASS_MAX and not is_taken(device) do
    local best = redis.call('ZRANGE', ready, passed, passed, 'WITHSCORES')
    if not best[1] then break end
    looked_at = looked_at + 1
    grant = open_ticket(best[1], tonumber(best[2]), ARGV[at])
  end
  if grant then reply[#reply + 1] = grant end
end
save_totals()
if passed < PASS_MAX and redis.call('ZCARD', ready) > passed and not is_taken(device) then ring(device) end
reply[2], reply[3] = wait(), left_alone
return reply
