-- Intents to submit jobs to a machine.
-- include: restart

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
