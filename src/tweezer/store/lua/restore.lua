-- restore: restores a batch from the ledger after Redis lost its last writes. Jobs that ended in the ledger end here.
-- Missing batches and jobs are created, pending unless they ended. May be repeated. A batch with many jobs takes several
-- calls; one that was missing has version 0, which all other scripts leave alone, until it has all its jobs.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   recorded:int, number of its last recorded event   status:str, its letter in the ledger
--     fields:{name:str value:bytes}[] of its record in the ledger, with doc
--     ended:{batch_id:str end:str}[], those of the batches that it waits for that have ended in the ledger, as in `end_of`
--     jobs:{index:digits spec:bytes state:any result:bytes result_bytes:int fault:any}..., in the order of their indices:
--     spec with the time of its submit; state, result and fault or ''
-- Returns {'ok', number of jobs that are still missing} | {'unknown'}: of another version, or damaged
-- Events  none for transitions that are recorded; job.pending or job.canceled of a job that a lost ticket ran; batch.*
--     if that ends the batch
-- Gate    kept shut by each call
-- include: lists, intent, job_ends, results, deadlines, issue, priority, finish, maxmemory, generated/record
-- include: generated/job_over, generated/sizes

local PARTIAL = '0'
local ANEW = { -- fields of a missing batch that are counted from its jobs, or start at 0
  v = true, status = true, ended = true, seq = true, cursor = true, back = true, delayed = true, slots = true,
  failures = true, jobs = true, pending = true, running = true, done = true, error = true, canceled = true,
  crashes = true, charged = true, bytes = true, results = true,
}

local id, record, ledger = batch_id, key(KEY.batch, batch_id), {}
for at = fields_first, fields_last, 2 do ledger[ARGV[at]] = ARGV[at + 1] end

-- Creates the record of a missing batch, without jobs. The ledger has it field by field, like the older version.
local function create()
  local row = { 'v', OLDER, 'status', BATCH_OVER[status] and 'P' or status }
  for name, value in pairs(ledger) do
    if not ANEW[name] then put(row, name, value) end
  end
  local bytes = BATCH_BYTES + #ledger.doc
  put(row, 'bytes', int(bytes))
  redis.call('HSET', record, unpack(row))
  redis.call('ZADD', key(KEY.batches, ledger.project), int(tonumber(ledger.created) / 1000), id)
  redis.call('SADD', key(KEY.devices), ledger.device)
  count_use(ledger.project, 'bytes', bytes)
end

local function paused_at(text)
  return tonumber(string.match(text or '', '^%d+')) or 0
end

-- Final states of the ledger are final here; other fields are taken over unless Redis has newer ones.
local function follow(b)
  if ledger.open ~= '1' then b.open = 0 end
  if ledger.fate ~= 'T' then b.fate = b.fate or ledger.fate end
  if ledger.fault then redis.call('HSETNX', record, 'fault', ledger.fault) end
  if ledger.cancels and #ledger.cancels > redis.call('HSTRLEN', record, 'cancels') then
    redis.call('HSET', record, 'cancels', ledger.cancels)
  end
  if paused_at(ledger.paused) > paused_at(redis.call('HGET', record, 'paused')) then
    redis.call('HSET', record, 'paused', ledger.paused)
  end
  if ledger.tags then redis.call('HSET', record, 'tags', ledger.tags) end
  if ledger.rules and recorded > b.seq then
    b.rules = ledger.rules
    put(b.changed, 'rules', b.rules)
  end
  if ledger.priority ~= b.priority then change_priority(b, ledger.priority) end
  if b.started == 0 then b.started = tonumber(ledger.started or 0) end
  b.worked = math.max(b.worked, tonumber(ledger.worked or 0))
  if recorded > b.seq and not is_over(b) and not BATCH_OVER[status] then b.status = status end
  b.seq = math.max(b.seq, recorded)
end

-- The batch waits for those that it waits for both here and in the ledger. The sweep checks each of them after the gate
-- opened: the ledger may have its end, or Redis may lack it.
local function follow_parents(b)
  local parents, ends_there = {}, {}
  for at = ended_first, ended_last, 2 do ends_there[ARGV[at]] = ARGV[at + 1] end
  for it in string.gmatch(redis.call('HGET', record, 'parents') or '', '%S+') do
    local parent = string.sub(it, 1, 36)
    if string.find(ledger.parents or '', parent, 1, true) then
      parents[#parents + 1] = it
      redis.call('ZADD', key(KEY.dependents, parent), int(b.created), id)
      redis.call('ZADD', key(KEY.releases), NOW_MS, parent .. ':' .. (ends_there[parent] or '?'))
    else
      redis.call('ZREM', key(KEY.dependents, parent), id)
    end
  end
  b.waits = #parents > 0
  if b.waits then
    redis.call('HSET', record, 'parents', table.concat(parents, ' '))
  elseif redis.call('HDEL', record, 'parents') == 1 then
    set_deadlines(b)
  end
end

-- Whether the ledger's state of a live job is newer: an execution that began later, or the end of one. The later
-- execution may have the older token, because a ticket that a power loss restored takes jobs again.
local function is_ahead(row, st)
  local theirs, ours = number_of(row, S.token), number_of(st, S.token)
  if theirs == ours then return theirs > 0 and st[S.status] == 'R' and row[S.status] == 'P' end
  local theirs_begun, ours_begun = number_of(row, S.begun), number_of(st, S.begun)
  if theirs_begun ~= ours_begun then return theirs_begun > ours_begun end
  return theirs > ours
end

-- Appends the missing jobs, and ends those that ended in the ledger. Returns the indices of the latter, and the live jobs
-- whose state in the ledger is newer, as {index, state in the ledger, status here}.
local function put_back_jobs(b)
  local indices, raw, ended = {}, {}, {}
  for at = jobs_first, jobs_last, 6 do indices[#indices + 1] = ARGV[at] end
  if #indices > 0 then raw = redis.call('HMGET', key(KEY.state, id), unpack(indices)) end
  local specs, states, results, faults, moved = {}, {}, {}, {}, {}
  for i, index in ipairs(indices) do
    local at, number = jobs_first + 6 * (i - 1), tonumber(index)
    if number == b.jobs and ARGV[at + 1] ~= '' and not is_over(b) then
      put(specs, index, ARGV[at + 1])
      b.jobs, b.pending, b.bytes = b.jobs + 1, b.pending + 1, b.bytes + JOB_BYTES + #ARGV[at + 1]
    end
    local st, to = read_state(raw[i]), string.sub(ARGV[at + 2], 1, 1)
    local from = st[S.status]
    if number < b.jobs and JOB_OVER[to] and not JOB_OVER[from] then
      b[COUNTER[from]] = b[COUNTER[from]] - 1
      b[COUNTER[to]] = b[COUNTER[to]] + 1
      put(states, index, ARGV[at + 2])
      if ARGV[at + 3] ~= '' then
        put(results, index, ARGV[at + 3])
        keep_result(b, tonumber(ARGV[at + 4]))
      end
      if ARGV[at + 5] ~= '' then put(faults, index, ARGV[at + 5]) end
      ended[#ended + 1] = index
    elseif number < b.jobs and to ~= '' and not JOB_OVER[from] then
      local row = read_state(ARGV[at + 2])
      if is_ahead(row, st) and not (from == 'R' and is_remote(b, index)) then
        moved[#moved + 1] = { index, row, from }
        put(states, index, ARGV[at + 2])
      end
    end
  end
  each_thousand('HSET', key(KEY.spec, id), specs)
  each_thousand('HSET', key(KEY.state, id), states)
  each_thousand('HSET', key(KEY.result, id), results)
  each_thousand('HSET', key(KEY.fault, id), faults)
  return ended, moved
end

-- Removes ended jobs from all queues. The cursor moves after the last of them, and jobs in between come back. Jobs that
-- came back before and are over are skipped when they are claimed.
local function take_out(b, ended)
  if #ended == 0 then return end
  for n = 0, b.slots - 1 do redis.call('SREM', key(KEY.held, id, int(n)), unpack(ended)) end
  b.delayed = b.delayed - redis.call('ZREM', key(KEY.delay, id), unpack(ended))
  local cursor = b.cursor
  for _, index in ipairs(ended) do cursor = math.max(cursor, tonumber(index) + 1) end
  for page = b.cursor, cursor - 1, 1000 do
    local indices, passed = {}, {}
    for index = page, math.min(page + 1000, cursor) - 1 do indices[#indices + 1] = int(index) end
    for i, state in ipairs(redis.call('HMGET', key(KEY.state, id), unpack(indices))) do
      if not state then passed[#passed + 1] = indices[i] end
    end
    come_back(b, passed)
  end
  b.cursor = cursor
end

-- Whether a live job is already in the list of jobs that came back.
local function came_back_already(b, index)
  if tonumber(index) >= b.cursor or redis.call('ZSCORE', key(KEY.delay, id), index) then return false end
  for n = 0, b.slots - 1 do
    if redis.call('SISMEMBER', key(KEY.held, id, int(n)), index) == 1 then return false end
  end
  return true
end

-- Gives live jobs their state in the ledger. A job whose ticket is still held continues to run. A job whose ticket Redis
-- has lost becomes pending again, which is a transition with an event.
local function follow_jobs(b, ended, moved)
  local indices, waiting, holders = { unpack(ended) }, {}, {}
  for n = 0, b.slots - 1 do
    local _, t = load_batch(id, int(n))
    if t then holders[t.token] = t end
  end
  for _, it in ipairs(moved) do
    indices[#indices + 1] = it[1]
    waiting[it[1]] = came_back_already(b, it[1])
  end
  take_out(b, indices)
  for _, it in ipairs(moved) do
    local index, st, from = it[1], it[2], it[3]
    local holder = st[S.status] == 'R' and holders[st[S.token]]
    b[COUNTER[from]] = b[COUNTER[from]] - 1
    b[COUNTER[st[S.status]]] = b[COUNTER[st[S.status]]] + 1
    if holder then
      if waiting[index] then b.back = b.back - redis.call('LREM', key(KEY.back, id), 1, index) end
      redis.call('SADD', key(KEY.held, id, holder.n), index)
    else
      if st[S.status] == 'R' and st[S.cancel] ~= '-' then
        end_job(b, index, st, 'C')
      elseif st[S.status] == 'R' then
        requeue_job(b, index, st, 'restart')
      end
      if st[S.status] == 'P' and not waiting[index] then come_back(b, { index }) end
    end
    write_state(b, index, st)
  end
end

exempt_from_maxmemory()
local shut_us = redis.call('GET', key(KEY.gate)) or int(came_back() * 1000)
redis.call('SET', key(KEY.gate), shut_us, 'PX', int(math.max(setting('restore_wait'), 1)))
local version = redis.call('HGET', record, 'v')
local is_partial = not version or version == PARTIAL
if not (is_partial or version == VERSION or version == OLDER) or ledger.v ~= VERSION and ledger.v ~= OLDER then
  return { 'unknown' }
end
if not version then
  create()
elseif is_partial then
  redis.call('HSET', record, 'v', redis.call('HEXISTS', record, 'made') == 1 and VERSION or OLDER)
end

local b = load_batch(id)
if not b then
  if is_partial then redis.call('HSET', record, 'v', PARTIAL) end
  return { 'unknown' }
end
follow(b)
follow_parents(b)
follow_jobs(b, put_back_jobs(b))
local lacking = math.max(tonumber(ledger.jobs or 0) - b.jobs, 0)
if lacking == 0 and not is_over(b) then
  if BATCH_OVER[status] and b.pending + b.running == 0 then
    b.status, b.ended = status, tonumber(ledger.ended)
    withdraw(b)
  elseif b.status ~= 'S' then
    issue_tickets(b)
  end
  if b.started == 0 and not is_over(b) then enter_deadline(b) end
  conclude(b)
end
save(b)
save_totals()
if is_partial and lacking > 0 then redis.call('HSET', record, 'v', PARTIAL) end
return { 'ok', lacking }
