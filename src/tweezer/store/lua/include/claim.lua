-- Hands out jobs.
-- include: batch, held, job_ends, queue, device, generated/job_over

-- Hands jobs to a ticket that holds `held` jobs, until it holds its share, at most `most`: first those that came back, then
-- new ones. A job that was attempted before is handed out alone, so that a job that crashes its lane does not affect
-- others. A token runs a job only once, so that a repeated settle is not mistaken for a second attempt.
-- Returns the jobs if the ticket now holds only jobs that were claimed here, and for the first time.
local function claim(b, t, most, held)
  local on_machine = has_remote(b)
  if is_over(b) or b.status == 'S' and not on_machine then return nil end
  if b.exclusive == 1 or b.reattaches == 1 then most = 1 end
  local states, taken = key(KEY.state, b.id), {}
  if b.delayed > 0 then
    local delay = key(KEY.delay, b.id)
    local due = redis.call('ZRANGEBYSCORE', delay, '-inf', NOW_MS, 'LIMIT', 0, 1000)
    if #due > 0 then
      redis.call('ZREM', delay, unpack(due))
      b.delayed = b.delayed - #due
      come_back(b, due)
    end
  end
  local share = math.max(1, math.ceil((waiting(b) + held) / (2 * math.max(device_row(b.device).lanes, 1))))
  local k = math.min(most, share) - held
  local alone = false
  local list = key(KEY.back, b.id)
  while b.back > 0 and #taken < k and not alone do
    local index = redis.call('LINDEX', list, 0)
    if not index then b.back = 0; break end
    local st = read_state(redis.call('HGET', states, index))
    if st[S.status] == 'P' and st[S.token] == t.token then break end
    alone = number_of(st, S.attempt) > 0 and st[S.status] == 'P'
    if alone and held + #taken > 0 then break end
    redis.call('LPOP', list)
    b.back = b.back - 1
    if st[S.status] == 'P' or st[S.status] == 'R' then taken[#taken + 1] = index end
    alone = alone or st[S.status] == 'R'
  end
  local all_fresh = held == 0 and #taken == 0
  while not alone and #taken < k and b.cursor < b.jobs do
    local page = {}
    for index = b.cursor, math.min(b.jobs, b.cursor + k - #taken, b.cursor + 1000) - 1 do
      page[#page + 1] = int(index)
    end
    if b.canceled + b.error == 0 then -- jobs that were never handed out have no state
      for _, index in ipairs(page) do taken[#taken + 1] = index end
    else
      local raw = redis.call('HMGET', states, unpack(page))
      for i, index in ipairs(page) do
        if not raw[i] then taken[#taken + 1] = index end
      end
    end
    b.cursor = b.cursor + #page
  end
  each_thousand('SADD', key(KEY.held, b.id, t.n), taken)
  return all_fresh and taken or nil
end

-- Returns the held jobs that are not over, by index, and the states of those that had begun before.
local function still_held(b, t)
  local indices = held_indices(b, t)
  if #indices == 0 then return {}, {} end
  local raw = redis.call('HMGET', key(KEY.state, b.id), unpack(indices))
  local kept, states, gone = {}, {}, {}
  for i, index in ipairs(indices) do
    local st = raw[i] and read_state(raw[i])
    if st and JOB_OVER[st[S.status]] then
      gone[#gone + 1] = index
    else
      kept[#kept + 1] = index
      states[#kept] = st or nil
    end
  end
  if #gone > 0 then redis.call('SREM', key(KEY.held, b.id, t.n), unpack(gone)) end
  return kept, states
end

-- Returns the held set for its holder: { index, attempt, '1' if its cancel was requested, spec, … }, by index. If no job
-- has begun, the first one begins now, because the lane is free. fresh: the value that `claim` returned.
local function held_jobs(b, t, fresh)
  local indices, states = fresh, {}
  if not fresh then indices, states = still_held(b, t) end
  if #indices == 0 then return {} end
  local begun = false
  for _, st in pairs(states) do begun = begun or st[S.status] == 'R' end
  if not begun then
    states[1] = states[1] or read_state()
    begin_job(b, indices[1], states[1], t.token, 'preparing')
    write_state(b, indices[1], states[1])
  end
  local specs, reply = redis.call('HMGET', key(KEY.spec, b.id), unpack(indices)), {}
  for i, index in ipairs(indices) do
    local st, at = states[i], 4 * i - 3
    reply[at] = index
    reply[at + 1] = st and st[S.attempt] or '0'
    reply[at + 2] = st and st[S.cancel] ~= '-' and '1' or '0'
    reply[at + 3] = specs[i]
  end
  return reply
end
