-- settle: writes the outcomes of jobs that a ticket holds and claims the next ones, or ends the ticket.
-- An outcome that this token settled before is answered as if new: a lost reply can be repeated.
-- It looks at the token, not at the clock: a lapsed lease that nobody took still settles.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] lease (ms)   [4] most jobs to hold; 0 gives the ticket back (drain)
--     [5] lane time since the last call (ms)
--     [6…] six a job: index, done|error|canceled|retry|crash, Result or Fault (bytes), preparation (ms),
--          execution (ms), delay before the retry (ms)
-- Returns {'jobs', refused, {index, attempt, '1'|'0' cancel requested, spec, …}} — the whole held set
--     | {'retired'|'yield'|'parked'|'stale', refused}; refused: outcomes that were not this token's to write
-- Events  per job job.running if it was not begun, then job.done|error|canceled|pending; batch.*

exempt_from_maxmemory()
local id, n = split_ticket(ARGV[1])
local token, lease, most = ARGV[2], tonumber(ARGV[3]), math.min(tonumber(ARGV[4]), HELD_MAX)
local b, t = load_batch(id, n)
local mine = b and t and t.token == token

local indices = {}
for at = 6, #ARGV, 6 do indices[#indices + 1] = ARGV[at] end
local raw = #indices > 0 and redis.call('HMGET', key(KEY.state, id), unpack(indices)) or {}
local refused = 0

if not mine then
  for i = 1, #indices do
    if not raw[i] or read_state(raw[i])[S.token] ~= token then refused = refused + 1 end
  end
  return { (refused > 0 or #indices == 0) and 'stale' or 'retired', refused }
end

local held_key, held = key(KEY.held, id, n), {}
for _, index in ipairs(redis.call('SMEMBERS', held_key)) do held[index] = true end

local ended, states, results, faults, back = {}, {}, {}, {}, {}
local function put(list, index, value) list[#list + 1] = index; list[#list + 1] = value end

local ending = { done = 'D', error = 'E', canceled = 'C' }
local function apply(at, st)
  local index, kind, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if not held[index] then
    if st[S.token] ~= token then refused = refused + 1 end
    return
  end
  held[index] = nil
  ended[#ended + 1] = index
  if JOB_OVER[st[S.status]] then refused = refused + 1; return end
  if st[S.status] == 'P' then
    begin_job(b, index, st, token, 'on_device')
    st[S.begun] = int(NOW - tonumber(ARGV[at + 4]))
  end
  st[S.token], st[S.preparation], st[S.execution] = token, ARGV[at + 3], ARGV[at + 4]
  local to, wait = ending[kind], tonumber(ARGV[at + 5])
  if not to then
    local counter, limit = S.transient, b.retries
    if kind == 'crash' then counter, limit = S.crashes, CRASH_MAX - 1 end
    local failures = number_of(st, counter) + 1
    st[counter] = int(failures)
    if st[S.cancel] ~= '-' then to = 'C' elseif failures > limit then to = 'E' end
  end
  if to then
    end_job(b, index, st, to)
    if to == 'D' then put(results, index, payload) elseif payload ~= '' then put(faults, index, payload) end
  else
    requeue_job(b, index, st)
    if wait > 0 then
      redis.call('ZADD', key(KEY.delay, id), int(NOW + wait), index)
      b.delayed = b.delayed + 1
    else
      back[#back + 1] = index
    end
  end
  put(states, index, table.concat(st, ' '))
end

for i = 1, #indices do apply(6 * i, read_state(raw[i])) end
if #ended > 0 then each_thousand('SREM', held_key, ended) end
each_thousand('HSET', key(KEY.state, id), states)
each_thousand('HSET', key(KEY.result, id), results)
each_thousand('HSET', key(KEY.fault, id), faults)
if #back > 0 then come_back(b, back) end
if #ended > 0 then b.failures = 0 end
t.used = t.used + tonumber(ARGV[5])

-- Whether another ticket should have the lane now: this one used its quantum and would rank behind.
local function should_yield()
  if t.used < setting('quantum') or b.exclusive == 1 then return false end
  local best = redis.call('ZRANGE', key(KEY.ready, b.device), 0, 0, 'WITHSCORES')
  if not best[2] then return false end
  local base, virtual = rank(b)
  local again = math.max(base + t.used - setting('quantum'), virtual) + PENALTY[b.priority]
  return tonumber(best[2]) < again
end

local left = 0
for _ in pairs(held) do left = left + 1 end
local word, jobs = 'jobs', {}
if left + waiting(b) + b.delayed > 0 then
  local fresh
  if most == 0 or b.status == 'S' or is_paused(b.device) or should_yield() then
    take_back(b, t, most == 0 and 'drain' or 'stop')
  else
    fresh = claim(b, t, most, left)
  end
  jobs = held_jobs(b, t, fresh)
end
if #jobs > 0 then
  if t.used >= setting('quantum') then
    settle_service(b, t)
    charge(b, (rank(b)), setting('quantum'))
    t.used = 0
  end
  write_ticket(b, t)
  redis.call('ZADD', key(KEY.leases, b.device), int(NOW + lease), t.name)
else
  word = requeue_or_retire(b, t)
end
finish(b)
return { word, refused, jobs }
