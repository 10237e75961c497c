-- The end of jobs and of attempts.
-- include: job_moves, lists

local function end_job(b, index, st, to)
  if to == 'C' and st[S.cancel] ~= '-' then st[S.outcome] = st[S.status] == 'P' and 'prevented' or 'stopped' end
  move_job(b, index, st, to)
  st[S.ended], st[S.stage], st[S.staged] = NOW_MS, '-', '-'
  clear_progress(st)
end

-- Makes a running job pending again, for another attempt. why: a word of model.events.RETURNS. fault: why its attempt failed,
-- if it did.
local function requeue_job(b, index, st, why, fault)
  b.why = why
  move_job(b, index, st, 'P')
  st[S.stage], st[S.staged] = '-', '-'
  clear_progress(st)
  if fault and fault ~= '' then tell_fault(b, index, why .. ' ' .. fault) end
end

local function come_back(b, indices)
  each_thousand('RPUSH', key(KEY.back, b.id), indices)
  b.back = b.back + #indices
end

local function note_fault(b, index, fault) redis.call('HSET', key(KEY.fault, b.id), index, fault) end
