-- Requests to end jobs.
-- include: clock, job, changes

local ATTEMPTS_BYTES = 65536 -- what is noted of who cancelled jobs of a batch: about a thousand requests

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

-- Asks for the end of a running job: noted in its state, told to the pool when the call is written.
local function request_cancel(b, index, st)
  note_request(st)
  write_state(b, index, st)
  touch(b)
  b.asked[#b.asked + 1] = index
end
