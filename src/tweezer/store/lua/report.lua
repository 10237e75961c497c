-- report: reports a fault, progress or a new status of a job on behalf of its holder. The job may end or become pending
-- again; only its holder can begin it or write its result. The holder of a running job loses its ticket.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   index:digits   to:str, letter of the new status, or ''
--     percent:str or ''   steps:str, message:str as pack_steps makes them, or ''   fault:bytes, Fault (JSON), or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'} | {'over'} | {'forbidden', letter of its current status}
-- Events  job.error|canceled|pending, and job.canceled if pending is reported for a job whose cancel was requested;
--     job.pending of other jobs that the ticket ran; batch.*; an entry for a fault, too; batch.paused or job.canceled
--     if so many jobs have failed
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- Publishes  "<batch> <index>" on the pool's channel for a running job that ends; its progress
-- include: own_batch, give_back, progress, failures, finish, maxmemory, generated/job_over

exempt_from_maxmemory()
local REPORTED = { P = true, E = true, C = true }

-- The ticket that holds the job, or nil.
local function holder(b, index)
  for n = 0, b.slots - 1 do
    if redis.call('SISMEMBER', key(KEY.held, b.id, int(n)), index) == 1 then
      local _, t = load_batch(b.id, int(n))
      return t
    end
  end
end

-- Takes a running job from its holder, whose token becomes stale, and gives the ticket's other jobs back.
local function take_away(b, index, st, to)
  local t = holder(b, index)
  b.holder = t and t.lane
  if t then redis.call('SREM', key(KEY.held, b.id, t.n), index) end
  if to == 'P' and st[S.cancel] == '-' then
    requeue_job(b, index, st, 'report', fault)
    come_back(b, { index })
  else
    end_job(b, index, st, to == 'P' and 'C' or to)
    b.asked[#b.asked + 1] = index
  end
  st[S.token] = '-'
  if t then
    take_back(b, t, 'drain')
    requeue_or_retire(b, t)
  end
end

local b, none = load_own_batch(batch_id, project)
if not b or tonumber(index) >= b.jobs then return { none } end
local st = read_state(redis.call('HGET', key(KEY.state, b.id), index))
local from = st[S.status]
if JOB_OVER[from] then return { 'over' } end
if to == '' then to = from end
if to ~= from and not (REPORTED[to] and string.find(JOB_MOVES, from .. to, 1, true)) then return { 'forbidden', from } end
local has_progress = percent ~= '' or steps ~= '' or message ~= ''
if has_progress and to ~= 'R' then return { 'forbidden', from } end

if fault ~= '' then
  note_fault(b, index, fault)
  touch(b)
end
if has_progress then
  local function or_before(new, before) return new ~= '' and new or before or '-' end
  set_progress(st, or_before(percent, st[S.progress]), or_before(steps, st[S.steps]), or_before(message, st[S.message]))
  publish_progress(b, index, st)
end
if to ~= from and from == 'R' then
  take_away(b, index, st, to)
elseif to ~= from then
  end_job(b, index, st, to)
  b.delayed = b.delayed - redis.call('ZREM', key(KEY.delay, b.id), index)
end
if to ~= from or has_progress then write_state(b, index, st) end
limit_failures(b)
finish(b)
return { 'ok' }
