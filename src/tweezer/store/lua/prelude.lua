-- What every script shares: the clock, keys, the batch record, job states, events, tickets.
--
-- The loader puts generated tables before it: KEY (patterns of keys), S (positions in a job's state),
-- TEXT and NUMBER (fields of the batch record), JOB_MOVES, BATCH_MOVES and JOB_OVER (the lifecycle),
-- SETTINGS, SETTING and DEFAULT (what operators set), QUOTA_FIELDS and QUOTAS (model.quotas), and constants
-- (VERSION, PENALTY, *_MAX, *_BYTES, LOST_FAULT).
-- KEYS[1] of every script is the namespace; all times are milliseconds unless a name says otherwise.

local NS = KEYS[1]
local clock = redis.call('TIME')
local NOW_US = clock[1] .. string.format('%06d', tonumber(clock[2]))
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local LEAVE_ALONE = 5000 -- before a batch of an unknown version is looked at again
local ATTEMPTS_BYTES = 65536 -- what is noted of who cancelled jobs of a batch: about a thousand requests
local HELD_MAX = 1000 -- jobs that a ticket holds: unpack fails near 8,000

local function key(pattern, a, b) return NS .. string.format(pattern, a, b) end
local function int(number) return string.format('%.0f', number) end
local NOW_MS = int(NOW)

-- What operators set (milliseconds), or its default.
local settings
local function setting(name)
  settings = settings or redis.call('HMGET', key(KEY.settings), unpack(SETTINGS))
  return tonumber(settings[SETTING[name]] or DEFAULT[name])
end

-- A write that frees memory, made first, lets the rest of a script write past maxmemory: what is under
-- way must be able to end. The key never exists.
local function exempt_from_maxmemory() redis.call('DEL', key(KEY.none)) end

local function put(list, name, value) list[#list + 1] = name; list[#list + 1] = value end

-- Calls a variadic command with a long list, a thousand elements at a time (unpack fails near 8,000).
local function each_thousand(command, name, list)
  for first = 1, #list, 1000 do
    redis.call(command, name, unpack(list, first, math.min(first + 999, #list)))
  end
end

---------------------------------------------------------------------------------------------- batches

local COUNTER = { P = 'pending', R = 'running', D = 'done', E = 'error', C = 'canceled' }

-- The batch as a table, or nil. A batch of an unknown version is nil, 'version'. With the number of a ticket
-- also that ticket, or nil.
local function load_batch(id, n)
  local raw = redis.call('HMGET', key(KEY.batch, id), 't:' .. (n or ''), unpack(FIELDS))
  if not raw[2] then return nil end
  if raw[2] ~= VERSION then return nil, 'version' end
  local t
  if raw[1] then
    local token, used, lane = string.match(raw[1], '^(%S+) (%S+) (%S*)$')
    t = { n = n, name = id .. ':' .. n, token = token, used = tonumber(used), lane = lane }
  end
  return read_batch(id, raw), t
end

---------------------------------------------------------------------------------------------- the gate

-- For how long (ms), at most, the gate is still shut: Redis started again, and the ledger may have what it lost. Not
-- above 0: the gate is open. Read once a script.
local gate
local function shut_for()
  gate = gate or redis.call('PTTL', key(KEY.gate))
  return gate
end

local function is_shut() return shut_for() > 0 end

-- Since when this Redis may lack the last writes of the one before; 0 if there was none.
local function came_back()
  return tonumber(string.match(redis.call('GET', key(KEY.server)) or '', '^(%d+) ') or 0)
end

-- Ends the script with an error that callers receive as *unavailable*; nothing may have been written before. Until the
-- ledger has put back what was lost, a batch from before the restart must not change: its events would take numbers
-- that were given before, and a job whose end was announced would end again.
local function refuse_while_shut() error('GATE_SHUT', 0) end

-- The batch if it exists and belongs to the project ('' matches any: the caller is a worker or an operator). For scripts
-- that change it: while the gate is shut, only one that was created since the restart is returned. Without a batch the
-- second value is the word to answer: 'newer' of one that a newer Tweezer wrote, else 'unknown'.
local function load_own_batch(id, project)
  local b, problem = load_batch(id)
  if problem == 'version' then
    local row = redis.call('HMGET', key(KEY.batch, id), 'v', 'project')
    if tonumber(row[1]) and tonumber(row[1]) > tonumber(VERSION) and (project == '' or row[2] == project) then
      return nil, 'newer'
    end
  end
  if b and project ~= '' and b.project ~= project then b = nil end
  local shut_us = redis.call('GET', key(KEY.gate)) -- when Redis had restarted
  if shut_us and not (b and tonumber(b.created) > (tonumber(shut_us) or came_back() * 1000)) then refuse_while_shut() end
  return b, 'unknown'
end

local function split_ticket(name) return string.sub(name, 1, 36), string.sub(name, 38) end

-- The batch and the ticket of this name, nil if the token is stale. For scripts by which its holder changes jobs: not
-- while the gate is shut, since all tickets are then from before the restart.
local function load_held_ticket(name, token)
  if is_shut() then refuse_while_shut() end
  local id, n = split_ticket(name)
  local b, t = load_batch(id, n)
  if not b or not t or t.token ~= token then return nil end
  return b, t
end

---------------------------------------------------------------------------------------- changes of a batch

local BATCH_OVER = { D = true, E = true, C = true, T = true }
-- Whether a project is among those of ARGV from a place on: their number ('-1' is any), then their ids.
local function is_among_projects(project, at)
  local many = tonumber(ARGV[at])
  for other = at + 1, at + many do
    if ARGV[other] == project then return true end
  end
  return many < 0
end

local function is_over(b) return BATCH_OVER[b.status] end

local function emit(b, word, count)
  if #b.events == 0 then b.first_event = b.seq + 1 end
  b.seq = b.seq + (count or 1)
  b.events[#b.events + 1] = word
end

-- Notes a change that is no transition but that the ledger must see: it gets an entry without a word.
local function touch(b) b.touched = true end

local function move_batch(b, to)
  if not BATCH_MOVES[b.status .. to] then
    error('batch ' .. b.id .. ' cannot go from ' .. b.status .. ' to ' .. to)
  end
  emit(b, b.status .. to)
  b.status = to
end

-- Changes of the counters of devices and projects, by key and field, written once a script.
local tally = {}
local project_tally = {}

local function add_to(tallies, name, counter, change)
  if change == 0 then return end
  tallies[name] = tallies[name] or {}
  tallies[name][counter] = (tallies[name][counter] or 0) + change
end

local function count(device, counter, change) add_to(tally, key(KEY.device, device), counter, change) end
local function count_use(project, counter, change) add_to(project_tally, key(KEY.project, project), counter, change) end

-- A counter of a project that is 0 has no field, so that nothing stays of a project that has nothing.
local function save_counts()
  for name, counters in pairs(tally) do
    for counter, change in pairs(counters) do redis.call('HINCRBY', name, counter, int(change)) end
  end
  for name, counters in pairs(project_tally) do
    for counter, change in pairs(counters) do
      if change ~= 0 and redis.call('HINCRBY', name, counter, int(change)) == 0 then redis.call('HDEL', name, counter) end
    end
  end
  tally, project_tally = {}, {}
end

-- The use and the limit (0 is none) of the quotas of a project, by name, as they were before this script.
local quota_rows = {}
local function read_quotas(project)
  if quota_rows[project] then return quota_rows[project] end
  local row, found = redis.call('HMGET', key(KEY.project, project), unpack(QUOTA_FIELDS)), {}
  for _, quota in ipairs(QUOTAS) do
    local used, limit = 0, tonumber(row[quota.max] or nil)
    for _, at in ipairs(quota.counters) do used = used + tonumber(row[at] or 0) end
    if not limit then
      limit = setting(quota.name)
      local memory = setting('memory')
      if quota.name == 'queued_bytes' and limit > 0 and memory > 0 then
        limit = math.min(limit, math.floor(memory / MEMORY_SHARES))
      end
    end
    found[quota.name] = { used = used, limit = limit }
  end
  quota_rows[project] = found
  return found
end

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

-- Writes what changed in the record, then the events of this call as one entry, then tells who listens.
local function save(b)
  count_use(b.project, 'jobs', b.pending - b.charged)
  count_use(b.project, 'bytes', b.bytes - b.was_bytes)
  b.charged = b.pending
  local changed, was = b.tickets, b.was
  changed[#changed + 1], changed[#changed + 2] = 'updated', NOW_MS
  for at, name in ipairs(TEXT) do
    if b[name] ~= (was[at + 2] or nil) then changed[#changed + 1], changed[#changed + 2] = name, b[name] end
  end
  for at, name in ipairs(NUMBER) do
    if b[name] ~= tonumber(was[at + 2 + #TEXT] or 0) then
      changed[#changed + 1], changed[#changed + 2] = name, int(b[name])
    end
  end
  redis.call('HSET', key(KEY.batch, b.id), unpack(changed))
  count(b.device, 'pending', b.pending - b.was_pending)
  count(b.device, 'running', b.running - b.was_running)
  if b.touched or #b.events > 0 then
    local first, words = int(b.first_event or b.seq + 1), table.concat(b.events, ' ')
    redis.call('XADD', key(KEY.events), '*', 'b', b.id, 's', first, 't', NOW_US, 'e', words)
    if words ~= '' then redis.call('PUBLISH', key(KEY.news, b.id), words) end
  end
  if #b.asked > 0 then
    redis.call('PUBLISH', key(KEY.pool, b.device), b.id .. ' ' .. table.concat(b.asked, ','))
  end
end

-- Appends a notice: an event that is of no batch and everybody's. data: JSON.
local function notify(type, subject, data)
  redis.call('XADD', key(KEY.events), '*', 'n', type, 'i', subject .. ':' .. NOW_US, 'p', '', 't', NOW_US, 'd', data)
end

--- Whether an entry of a stream is before another one, by their ids.
local function is_earlier(a, b)
  local a_ms, a_number = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_number = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_number) < tonumber(b_number))
end

-- Of each group of readers of the events: the id of its oldest entry that is not acknowledged (is_pending) or, with
-- none, of the last one delivered.
local function group_positions()
  local events, groups = key(KEY.events), {}
  if redis.call('EXISTS', events) == 0 then return groups end
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', events)) do
    local row = {}
    for at = 1, #found, 2 do row[found[at]] = found[at + 1] end
    local pending = redis.call('XPENDING', events, row.name)
    local is_pending = tonumber(pending[1]) > 0
    groups[#groups + 1] = { is_pending = is_pending, position = is_pending and pending[2] or row['last-delivered-id'] }
  end
  return groups
end

------------------------------------------------------------------------------------------------ jobs

local FRESH = { 'P', '0' }
for position = 3, STATE_SIZE do FRESH[position] = '-' end

local function read_state(raw)
  if not raw then return { unpack(FRESH) } end
  local st, n = {}, 0
  for word in string.gmatch(raw, '%S+') do n = n + 1; st[n] = word end
  return st
end

local function number_of(st, position) return tonumber(st[position]) or 0 end

local function write_state(b, index, st)
  redis.call('HSET', key(KEY.state, b.id), index, table.concat(st, ' '))
end

local function move_job(b, index, st, to)
  local from = st[S.status]
  if not JOB_MOVES[from .. to] then
    error('job ' .. index .. ' of ' .. b.id .. ' cannot go from ' .. from .. ' to ' .. to)
  end
  st[S.status] = to
  b[COUNTER[from]] = b[COUNTER[from]] - 1
  b[COUNTER[to]] = b[COUNTER[to]] + 1
  emit(b, index .. from .. to)
end

-- The execution of a job begins under a token: an attempt, and its clock runs from here.
local function begin_job(b, index, st, token, stage)
  if b.started == 0 then b.started = NOW end
  if b.status == 'P' then move_batch(b, 'R') end
  move_job(b, index, st, 'R')
  st[S.attempt] = int(number_of(st, S.attempt) + 1)
  st[S.token], st[S.begun], st[S.ended] = token, NOW_MS, '-'
  st[S.stage], st[S.staged], st[S.progress] = stage, NOW_MS, '-'
end

local function end_job(b, index, st, to)
  if to == 'C' and st[S.cancel] ~= '-' then st[S.outcome] = st[S.status] == 'P' and 'prevented' or 'stopped' end
  move_job(b, index, st, to)
  st[S.ended], st[S.stage], st[S.staged], st[S.progress] = NOW_MS, '-', '-', '-'
end

-- Notes in a job's state that its end was requested: when first, and how often.
local function note_request(st)
  if st[S.cancel] == '-' then st[S.cancel] = NOW_MS end
  st[S.cancels] = int(number_of(st, S.cancels) + 1)
end

-- Notes with a batch who asked for the end of which jobs ('*': of all that have not ended), while there is room.
local function note_attempt(id, jobs, by)
  local record, line = key(KEY.batch, id), NOW_MS .. ' ' .. jobs .. ' ' .. by
  local noted = redis.call('HGET', record, 'cancels')
  if noted then line = noted .. '\n' .. line end
  if #line <= ATTEMPTS_BYTES then redis.call('HSET', record, 'cancels', line) end
end

-- Appends an index to a list of ranges, {first, last} each; those that follow each other make one.
local function add_to_ranges(ranges, index)
  local last = ranges[#ranges]
  if last and last[2] == index - 1 then last[2] = index else ranges[#ranges + 1] = { index, index } end
end

local function range_word(range)
  return range[1] == range[2] and int(range[1]) or int(range[1]) .. '-' .. int(range[2])
end

-- A job that ran goes back to wait for another attempt.
local function requeue_job(b, index, st)
  move_job(b, index, st, 'P')
  st[S.stage], st[S.staged], st[S.progress] = '-', '-', '-'
end

local function come_back(b, indices)
  each_thousand('RPUSH', key(KEY.back, b.id), indices)
  b.back = b.back + #indices
end

-- Counts a result that is stored now.
local function keep_result(b, bytes)
  b.results = b.results + bytes
  count_use(b.project, 'results', bytes)
end

local function note_fault(b, index, fault) redis.call('HSET', key(KEY.fault, b.id), index, fault) end

-- The indices of a held set in order; sorted as numbers, which needs no call back for each comparison.
local function held_indices(b, t)
  local numbers = {}
  for i, index in ipairs(redis.call('SMEMBERS', key(KEY.held, b.id, t.n))) do numbers[i] = tonumber(index) end
  table.sort(numbers)
  local indices = {}
  for i, number in ipairs(numbers) do indices[i] = int(number) end
  return indices
end

----------------------------------------------------------------------------------- fair share and bell

-- Start-time fair queueing: a ticket is issued at max(V, finish of its project) and charged one quantum;
-- what it used is settled against that when it ends or yields. The penalty of a priority is a constant,
-- so age beats it in the end.
local function rank(b)
  local fair = redis.call('HMGET', key(KEY.fair, b.device), 'V', 'p:' .. b.project)
  local virtual = tonumber(fair[1] or 0)
  return math.max(virtual, tonumber(fair[2] or 0)), virtual
end

local function charge(b, from, milliseconds)
  redis.call('HSET', key(KEY.fair, b.device), 'p:' .. b.project, int(from + milliseconds))
end

-- Live lanes of a device, whether it is held (paused by an operator, under maintenance, or down), whether that is by an
-- operator (not down), whether one batch has it to itself, how long its jobs take, and when its next maintenance begins,
-- if any is planned; read once a script.
local devices = {}
local function device_row(device)
  if not devices[device] then
    local row = redis.call('HMGET', key(KEY.device, device), 'lanes', 'paused', 'down', 'exclusive', 'job_ms', 'window')
    local it = { lanes = tonumber(row[1] or 0), paused = (row[2] or row[3]) and true, exclusive = row[4] == '1' }
    it.withheld = row[2] and true
    it.job_ms = tonumber(row[5])
    if row[6] then
      local begins, ends = string.match(row[6], '^(%d+) (%d+)')
      if NOW < tonumber(begins) then
        it.begins = tonumber(begins)
      elseif NOW < tonumber(ends) then
        it.paused, it.withheld = true, true
      end
    end
    devices[device] = it
  end
  return devices[device]
end

local function is_paused(device) return device_row(device).paused end
local function is_withheld(device) return device_row(device).withheld end

-- Whether a batch has the device to itself, now: the lease of its ticket is the lease of the device.
local function is_taken(device)
  return device_row(device).exclusive and redis.call('EXISTS', key(KEY.leases, device)) == 1
end

-- How long (ms) a job of the batch is expected to take: as long as those of it did, else those of its device lately.
local function job_takes(b)
  local row = redis.call('HMGET', key(KEY.batch, b.id), 'timeout', 'worked')
  local mean, limit, worked = device_row(b.device).job_ms or 0, tonumber(row[1] or 0), tonumber(row[2] or 0)
  if worked > 0 and b.done > 0 then mean = worked / b.done end
  return limit > 0 and math.min(mean, limit) or mean
end

-- Whether what the batch would begin now is expected to end before the next maintenance of its device: all its jobs
-- if none ever began, else one more.
local function ends_in_time(b)
  local row = device_row(b.device)
  if not row.begins then return true end
  local turns = 1
  if b.started == 0 then turns = math.ceil(b.pending / (b.exclusive == 1 and 1 or math.max(row.lanes, 1))) end
  return NOW + turns * job_takes(b) <= row.begins
end

local function ring(device)
  local bell = key(KEY.bell, device)
  if redis.call('EXISTS', bell) == 0 then redis.call('RPUSH', bell, '1') end
end

------------------------------------------------------------------------------------ what holds a device

-- Notices that a device goes on, unless something else still holds it.
local function notify_up(device)
  local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'down', 'window_told')
  if row[1] or row[2] or row[3] then return end
  notify('device.up', device, '{"device":"' .. device .. '","status":"up","reason":null,"until":null}')
end

-- Forgets windows of maintenance that are over, and notes the next one, or the one that is under way, with the device.
local function look_out(device)
  local windows, first, found = key(KEY.windows, device), math.huge, nil
  local all = redis.call('HGETALL', windows)
  for at = 1, #all, 2 do
    local begins, ends = string.match(all[at + 1], '^(%d+) (%d+)')
    if tonumber(ends) <= NOW then
      redis.call('HDEL', windows, all[at])
    elseif tonumber(begins) < first then
      first, found = tonumber(begins), all[at + 1]
    end
  end
  if found then
    redis.call('HSET', key(KEY.device, device), 'window', found)
  else
    redis.call('HDEL', key(KEY.device, device), 'window')
  end
  return found
end

-- Does what is due by the plan of a device: ends a pause whose time has come, tells of maintenance that begins or is over.
local function keep_to_plan(device)
  local name = key(KEY.device, device)
  local row = redis.call('HMGET', name, 'paused_until', 'window', 'window_told')
  local pause_ends, window, told = tonumber(row[1] or 0), row[2], row[3]
  if not window and not told and pause_ends == 0 then return end
  local resumed = pause_ends > 0 and pause_ends <= NOW
  if resumed then redis.call('HDEL', name, 'paused', 'paused_at', 'paused_until') end
  if window and tonumber(string.match(window, '^%d+ (%d+)')) <= NOW then window = look_out(device) end
  local begins, data = string.match(window or '', '^(%d+) %d+ %S+ (.*)$')
  local current = begins and tonumber(begins) <= NOW and window or nil
  if current and current ~= told then
    redis.call('HSET', name, 'window_told', current)
    notify('device.paused', device, data)
  elseif told and not current then
    redis.call('HDEL', name, 'window_told')
    resumed = true
  end
  if resumed then
    notify_up(device)
    ring(device)
  end
end

---------------------------------------------------------------------------------------------- tickets

-- Whether a job that runs on a machine waits for a holder: those come back first.
local function has_remote(b)
  if b.reattaches ~= 1 or b.running == 0 or b.back == 0 then return false end
  local first = redis.call('LINDEX', key(KEY.back, b.id), 0)
  return first and read_state(redis.call('HGET', key(KEY.state, b.id), first))[S.status] == 'R'
end

local function ticket_name(b, n) return b.id .. ':' .. n end

-- Notes a ticket's record: token ('0' while nobody holds it), milliseconds of service used, lane.
local function write_ticket(b, t)
  b.tickets[#b.tickets + 1] = 't:' .. t.n
  b.tickets[#b.tickets + 1] = t.token .. ' ' .. int(t.used) .. ' ' .. t.lane
end

local FIRST = -1e14 -- before any rank
local KEPT = 5000 -- how long (ms) an idle batch keeps its machine without a holder before that is looked at again

-- Puts a ticket among the ready ones, or among those that wait for their time. One whose batch has a job on a machine comes
-- before all others, for a submit of theirs would displace that job; so does one whose batch had the machine to itself
-- when its holder went. While it waits for its time, an exclusive device stays taken.
local function queue_ticket(b, t, due)
  t.token, t.used, t.lane = '0', 0, ''
  write_ticket(b, t)
  local comes_first, later = has_remote(b) or b.reserved > 0 or t.had_machine, due and due > NOW
  if later and not (comes_first and b.exclusive == 1) then
    redis.call('ZADD', key(KEY.due, b.device), int(due), t.name)
    return
  end
  local start = rank(b)
  charge(b, start, setting('quantum'))
  if later then
    redis.call('ZADD', key(KEY.leases, b.device), int(due), t.name)
  else
    redis.call('ZADD', key(KEY.ready, b.device), int(comes_first and FIRST or start + PENALTY[b.priority]), t.name)
  end
end

local function waiting(b) return b.jobs - b.cursor + b.back end

-- Issues tickets up to min(jobs waiting, live lanes), one on an exclusive device, and rings. A ticket that
-- is parked until a job may be retried has jobs to run now, and so has one that keeps a machine for its batch without a
-- holder; one that waits after a failure stays.
local function issue_tickets(b)
  local retries_only = waiting(b) > 0 and b.failures == 0 and NOW >= b.not_before
  local want = math.min(waiting(b) + b.delayed, math.max(device_row(b.device).lanes, 1))
  if b.exclusive == 1 then want = math.min(want, 1) end
  for n = 0, want - 1 do
    local t = { n = int(n), name = ticket_name(b, int(n)) }
    local record = n < b.slots and redis.call('HGET', key(KEY.batch, b.id), 't:' .. t.n)
    if not record then
      queue_ticket(b, t, b.not_before)
    elseif b.reserved > 0 and string.sub(record, 1, 2) == '0 ' then
      redis.call('ZADD', key(KEY.leases, b.device), 'XX', NOW_MS, t.name) -- whoever takes next readies it
    elseif retries_only and redis.call('ZREM', key(KEY.due, b.device), t.name) == 1 then
      queue_ticket(b, t)
    end
  end
  b.slots = math.max(b.slots, want)
  if want > 0 then ring(b.device) end
end

-- What a taken ticket used, less the quantum that it was charged when issued.
local function settle_service(b, t)
  local base, virtual = rank(b)
  local due = t.used - setting('quantum')
  if base + due > virtual then
    charge(b, base, due)
  else
    redis.call('HDEL', key(KEY.fair, b.device), 'p:' .. b.project)
  end
end

-- A batch that held its device without work has work again, or gives the device up.
local function stop_idling(b)
  if b.reserved > 0 then b.idled, b.reserved = b.idled + NOW - b.reserved, 0 end
end

-- Ends a ticket: the only end there is.
local function retire(b, t)
  stop_idling(b)
  settle_service(b, t)
  redis.call('ZREM', key(KEY.leases, b.device), t.name)
  redis.call('HDEL', key(KEY.batch, b.id), 't:' .. t.n)
  if tonumber(t.n) == b.slots - 1 then b.slots = b.slots - 1 end
  if b.exclusive == 1 then ring(b.device) end
end

-- Gives up the lease of a ticket and queues it again, at its new rank or when it is due.
local function requeue_ticket(b, t, due)
  settle_service(b, t)
  local had_lease = redis.call('ZREM', key(KEY.leases, b.device), t.name) == 1
  t.had_machine = had_lease and b.exclusive == 1 and not due
  queue_ticket(b, t, due)
  ring(b.device)
end

--------------------------------------------------------------------------------------- ends of batches

-- Takes a batch that has ended out of all queues and files it under those that may be forgotten.
local function withdraw(b)
  redis.call('ZADD', key(KEY.ended), int(b.ended), b.id)
  if b.back + b.delayed > 0 then redis.call('DEL', key(KEY.back, b.id), key(KEY.delay, b.id)) end
  b.back, b.delayed, b.bytes = 0, 0, 0
  if b.was_open then redis.call('ZREM', key(KEY.idle), b.id) end
  for n = 0, b.slots - 1 do
    local name = ticket_name(b, int(n))
    local was_ready = redis.call('ZREM', key(KEY.ready, b.device), name)
    if was_ready == 1 then settle_service(b, { used = 0 }) end
    redis.call('ZREM', key(KEY.due, b.device), name)
    if b.exclusive == 1 and redis.call('ZREM', key(KEY.leases, b.device), name) == 1 then
      redis.call('HDEL', key(KEY.batch, b.id), 't:' .. int(n))
      ring(b.device)
    end
  end
  stop_idling(b)
end

-- The one predicate: closed and nothing pending or running makes a batch terminal. An open batch that
-- is without work gets a deadline. Runs at the end of everything that may change the answer.
local function conclude(b)
  if is_over(b) then return end
  local busy = b.pending > 0 or b.running > 0
  if b.open == 1 then
    if busy or b.status == 'S' then
      redis.call('ZREM', key(KEY.idle), b.id)
    else
      redis.call('ZADD', key(KEY.idle), 'NX', int(NOW + b.idle), b.id)
    end
  elseif not busy then
    move_batch(b, b.fate or 'D')
    b.ended = NOW
    withdraw(b)
  end
end

-- Ends every pending job with one status: those never handed out as ranges, then those that came back,
-- wait for a retry, or are held but not begun. Answers the ones that run, with their states; those of them that a machine
-- has and nobody holds go on waiting for a holder.
local function end_pending(b, to)
  local states, written, ranges, running = key(KEY.state, b.id), {}, {}, {}
  local function close(index, raw)
    local st = read_state(raw)
    if st[S.status] == 'R' then running[#running + 1] = { index, st } end
    if st[S.status] ~= 'P' then return end
    if to == 'C' then
      note_request(st)
      st[S.outcome] = 'prevented'
    end
    st[S.status], st[S.ended] = to, NOW_MS
    written[#written + 1] = index
    written[#written + 1] = table.concat(st, ' ')
    add_to_ranges(ranges, index)
  end
  local function close_all(indices)
    for first = 1, #indices, 500 do
      local page = { unpack(indices, first, math.min(first + 499, #indices)) }
      local raw = redis.call('HMGET', states, unpack(page))
      for i, index in ipairs(page) do close(tonumber(index), raw[i]) end
      each_thousand('HSET', states, written)
      written = {}
    end
  end
  close_all(redis.call('LRANGE', key(KEY.back, b.id), 0, -1))
  close_all(redis.call('ZRANGE', key(KEY.delay, b.id), 0, -1))
  for n = 0, b.slots - 1 do close_all(redis.call('SMEMBERS', key(KEY.held, b.id, int(n)))) end
  local fresh = {}
  for index = b.cursor, b.jobs - 1 do fresh[#fresh + 1] = int(index) end
  close_all(fresh)
  local on_machine = {}
  if has_remote(b) then
    for _, index in ipairs(redis.call('LRANGE', key(KEY.back, b.id), 0, -1)) do
      if read_state(redis.call('HGET', states, index))[S.status] == 'R' then on_machine[#on_machine + 1] = index end
    end
  end
  redis.call('DEL', key(KEY.back, b.id), key(KEY.delay, b.id))
  b.back, b.delayed, b.cursor = 0, 0, b.jobs
  come_back(b, on_machine)
  for _, range in ipairs(ranges) do
    local count = range[2] - range[1] + 1
    b.pending = b.pending - count
    b[COUNTER[to]] = b[COUNTER[to]] + count
    emit(b, range_word(range) .. 'P' .. to, count)
  end
  return running
end

-- A batch that cannot run: no more jobs, what is pending ends in ERROR, what runs may finish.
local function doom(b, fault)
  if is_over(b) then return end
  b.open = 0
  b.fate = b.fate or 'E'
  redis.call('HSETNX', key(KEY.batch, b.id), 'fault', fault)
  touch(b)
  end_pending(b, 'E')
end

-- The last step of every script that changed a batch.
local function finish(b)
  conclude(b)
  save(b)
  save_counts()
end

------------------------------------------------------------------------------------- taking jobs back

-- When Redis came back, and the last job that the machine was known to have then, for each return: '<ms>:<uid>' by
-- blanks, oldest first. Of more than 50 the first two become one, as if both were the first. device: its key.
local function returns_of(device)
  local since, returns = came_back(), redis.call('HGET', device, 'returns') or ''
  if since == 0 or string.match(returns, '(%d+):%S+$') == int(since) then return returns end
  local last = redis.call('HGET', device, 'last_uid') or '-'
  returns = (returns == '' and '' or returns .. ' ') .. int(since) .. ':' .. last
  local _, blanks = string.gsub(returns, ' ', ' ')
  if blanks >= 50 then returns = string.gsub(returns, '^%d+:(%S+) (%d+):%S+', '%2:%1') end
  redis.call('HSET', device, 'returns', returns)
  return returns
end

-- The last job that the machine was known to have when a job of this age can not have been submitted yet, or '-': of
-- one that was there when Redis came back without its last writes, they may have been about its submit.
local function last_before(device, created_us)
  for since, uid in string.gmatch(returns_of(device), '(%d+):(%S+)') do
    if created_us < since * 1000 then return uid end
  end
  return redis.call('HGET', device, 'last_uid') or '-'
end

-- Whether who wrote an intent may have submitted the job: it said so, or that may be lost.
local function may_be_sent(record)
  local at, sent = string.match(record, '^(%d+) %S+ %S+ %S+ (%S+)$')
  return sent ~= '0' or came_back() * 1000 >= tonumber(at)
end

-- The intent of a job that was, or may have been, submitted to a machine, else a false value: it runs there whatever
-- becomes of its worker, and is never submitted again.
local function is_remote(b, index)
  local record = b.reattaches == 1 and redis.call('HGET', key(KEY.remote, b.id), index)
  return record and may_be_sent(record) and record
end

-- Empties the held set of a ticket. why: 'lost' (its lease expired), 'fail', 'drain', or 'stop', which
-- leaves it the jobs that run. A job on a machine goes on RUNNING, and is the next one that is handed out.
local function take_back(b, t, why)
  local held = key(KEY.held, b.id, t.n)
  local indices, kept = held_indices(b, t), {}
  redis.call('DEL', held)
  if #indices == 0 then return end
  local raw, back = {}, {}
  for first = 1, #indices, 1000 do
    for _, state in ipairs(redis.call('HMGET', key(KEY.state, b.id),
      unpack(indices, first, math.min(first + 999, #indices)))) do raw[#raw + 1] = state end
  end
  for i, index in ipairs(indices) do
    local st = read_state(raw[i])
    if st[S.status] == 'P' then
      back[#back + 1] = index
    elseif st[S.status] == 'R' and why == 'stop' then
      kept[#kept + 1] = index
    elseif st[S.status] == 'R' and is_remote(b, index) then
      redis.call('LPUSH', key(KEY.back, b.id), index)
      b.back = b.back + 1
    elseif st[S.status] == 'R' then
      local lost = number_of(st, S.lost) + (why == 'lost' and 1 or 0)
      if why == 'lost' then st[S.lost] = int(lost) end
      if st[S.cancel] ~= '-' then
        end_job(b, index, st, 'C')
        if b.exclusive == 1 then st[S.outcome] = 'prevented' end -- the machine never had it
      elseif lost >= LOST_MAX then
        end_job(b, index, st, 'E')
        note_fault(b, index, LOST_FAULT)
      else
        if why == 'drain' then st[S.attempt] = int(number_of(st, S.attempt) - 1) end
        requeue_job(b, index, st)
        back[#back + 1] = index
      end
      write_state(b, index, st)
    end
  end
  each_thousand('SADD', held, kept)
  if #back > 0 then come_back(b, back) end
end

-- Whether an open batch without work keeps the machine that it has, also without a holder: more jobs may come.
local function keeps_machine(b, t)
  return b.exclusive == 1 and b.open == 1 and not is_over(b) and b.status ~= 'S' and waiting(b) + b.delayed == 0
    and not is_withheld(b.device)
    and (b.reserved > 0 or redis.call('ZSCORE', key(KEY.leases, b.device), t.name))
end

-- Queues a ticket again if its batch still has something for it, else retires it; a ticket that nobody holds keeps the
-- machine for its batch, until that is closed, paused or timed out, or an operator withholds the machine. Answers what it
-- did: 'yield' (ready again), 'parked' (until a retry is due, or jobs come) or 'retired'.
local function requeue_or_retire(b, t, due)
  if keeps_machine(b, t) then
    if b.reserved == 0 then b.reserved = NOW end
    requeue_ticket(b, t, NOW + KEPT)
    return 'parked'
  end
  if due or is_paused(b.device) then stop_idling(b) end
  if is_over(b) or b.status == 'S' and not has_remote(b) or waiting(b) + b.delayed == 0 then
    retire(b, t)
    return 'retired'
  end
  local word = 'yield'
  if waiting(b) == 0 then
    local next = redis.call('ZRANGE', key(KEY.delay, b.id), 0, 0, 'WITHSCORES')
    due, word = math.max(due or 0, tonumber(next[2] or 0)), 'parked'
  end
  requeue_ticket(b, t, due)
  return word
end

local function reclaim_expired(device, limit)
  local leases = key(KEY.leases, device)
  local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', NOW_MS, 'LIMIT', 0, limit)
  for _, name in ipairs(expired) do
    local id, n = split_ticket(name)
    local b, t = load_batch(id, n)
    if t == 'version' then
      redis.call('ZADD', leases, int(NOW + LEAVE_ALONE), name)
    elseif not t then
      redis.call('ZREM', leases, name)
      redis.call('DEL', key(KEY.held, id, n))
    else
      if t.token ~= '0' then count(device, 'lost', 1) end
      take_back(b, t, 'lost')
      requeue_or_retire(b, t)
      finish(b)
    end
  end
  return expired
end

-- Moves tickets whose time has come to the ready ones.
local function ready_due(device, limit)
  local due = key(KEY.due, device)
  local names = redis.call('ZRANGEBYSCORE', due, '-inf', NOW_MS, 'LIMIT', 0, limit)
  for _, name in ipairs(names) do
    redis.call('ZREM', due, name)
    local id, n = split_ticket(name)
    local b, problem = load_batch(id)
    if b then
      queue_ticket(b, { n = n, name = name })
    elseif problem == 'version' then
      redis.call('ZADD', due, int(NOW + LEAVE_ALONE), name)
    end
  end
  return #names
end

-- Forgets workers whose heartbeat stopped and counts the lanes of the others.
local function count_lanes(device)
  local workers, lanes = key(KEY.workers, device), 0
  redis.call('ZREMRANGEBYSCORE', workers, '-inf', NOW_MS)
  for _, worker in ipairs(redis.call('ZRANGE', workers, 0, -1)) do
    lanes = lanes + tonumber(redis.call('HGET', key(KEY.worker, worker), 'lanes') or 0)
  end
  redis.call('HSET', key(KEY.device, device), 'lanes', int(lanes))
  devices[device] = nil
end

------------------------------------------------------------------------------------------------ claims

-- Hands jobs to a ticket that holds some already, until it holds its share, at most `most`: first what
-- came back, then what is new. A job that was attempted before goes alone, so that poison takes no
-- neighbour down. A token runs a job once, so that a repeated settle is never taken for a second attempt.
-- Answers the jobs when all that the ticket holds now was claimed here, and for the first time.
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
    if b.canceled + b.error == 0 then -- nothing can have happened to a job that was never handed out
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

-- The held jobs that are not over, by index, and the states of those that were begun before.
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

-- The held set for its holder: { index, attempt, '1' if its cancel is requested, spec, … }, by index.
-- With nothing begun yet, its first job begins now: the lane is free for it. fresh: what `claim` answered.
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

----------------------------------------------------------------------------------------- repeated calls

-- A call with an idempotency key answers what it answered before, or 'conflict' for another body.
local function answered(project, idempotency, digest)
  if idempotency == '' then return nil end
  local before = redis.call('GET', key(KEY.idempotency, project, idempotency))
  if not before then return nil end
  local seen, answer = string.match(before, '^(%S+) (.*)$')
  if seen ~= digest then return { 'conflict' } end
  return { 'repeated', answer }
end

local function remember(project, idempotency, digest, answer)
  if idempotency == '' then return end
  redis.call('SET', key(KEY.idempotency, project, idempotency), digest .. ' ' .. answer,
    'PX', int(setting('idempotency')))
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

-- Wakes who holds a device for an open batch without work.
local function call_holder(b)
  local call = key(KEY.call, b.id)
  if b.exclusive == 1 and redis.call('EXISTS', call) == 0 then
    redis.call('RPUSH', call, '1')
    redis.call('PEXPIRE', call, 60000)
  end
end

-- Asks for the end of a running job: noted in its state, told to the pool when the call is written.
local function request_cancel(b, index, st)
  note_request(st)
  write_state(b, index, st)
  touch(b)
  b.asked[#b.asked + 1] = index
end
