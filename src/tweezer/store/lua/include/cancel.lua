-- Cancel requests.
-- include: clock, job, changes

local ATTEMPTS_BYTES = 65536 -- limit of a batch's recorded cancel requests: about a thousand of them
local BY_RULE = 'tweezer' -- the requester when a rule of the batch cancels it: model.cancels.RULE

-- Records a cancel request in a job's state: the time of the first one, and their number.
local function note_request(st)
  if st[S.cancel] == '-' then st[S.cancel] = NOW_MS end
  st[S.cancels] = int(number_of(st, S.cancels) + 1)
end

-- Records a cancel request in the batch record: the requester and the jobs ('*' for all that have not ended), up to a limit
-- unless it `must` be recorded.
local function note_attempt(id, jobs, by, must)
  local record, line = key(KEY.batch, id), NOW_MS .. ' ' .. jobs .. ' ' .. by
  local noted = redis.call('HGET', record, 'cancels')
  if noted then line = noted .. '\n' .. line end
  if must or #line <= ATTEMPTS_BYTES then redis.call('HSET', record, 'cancels', line) end
end

-- Requests the end of a running job: records it in the job's state, and publishes it to the pool when the call is saved.
local function request_cancel(b, index, st)
  note_request(st)
  write_state(b, index, st)
  touch(b)
  b.asked[#b.asked + 1] = index
end
