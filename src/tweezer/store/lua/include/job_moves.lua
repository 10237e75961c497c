-- Transitions of jobs.
-- include: job, changes, generated/job_moves

local COUNTER = { P = 'pending', R = 'running', D = 'done', E = 'error', C = 'canceled' }

local function move_job(b, index, st, to)
  local from = st[S.status]
  if not string.find(JOB_MOVES, from .. to, 1, true) then
    error('job ' .. index .. ' of ' .. b.id .. ' cannot go from ' .. from .. ' to ' .. to)
  end
  st[S.status] = to
  b[COUNTER[from]] = b[COUNTER[from]] - 1
  b[COUNTER[to]] = b[COUNTER[to]] + 1
  emit(b, index .. from .. to)
end

-- Clears the progress of a job. The last two words exist only where steps were reported.
local function clear_progress(st) st[S.progress], st[S.message], st[S.steps] = '-', nil, nil end

-- Begins the execution of a job with a token: a new attempt.
local function begin_job(b, index, st, token, stage)
  if b.started == 0 then
    b.started = NOW
    if b.rules then redis.call('ZREM', key(KEY.deadlines), b.id) end
  end
  if b.status == 'P' then move_batch(b, 'R') end
  move_job(b, index, st, 'R')
  st[S.attempt] = int(number_of(st, S.attempt) + 1)
  st[S.token], st[S.begun], st[S.ended] = token, NOW_MS, '-'
  st[S.stage], st[S.staged] = stage, NOW_MS
  clear_progress(st)
end
