-- Intents to submit jobs to a machine.
-- include: restart

-- Whether the job of an intent may have been submitted: its author announced that, or the announcement may have been lost.
local function may_be_sent(record)
  local at, sent = string.match(record, '^(%d+) %S+ %S+ %S+ (%S+)$')
  return sent ~= '0' or came_back() * 1000 >= tonumber(at)
end

-- Returns the intent of a job that may have been submitted to a machine, else a false value. Such a job continues to run
-- there if its worker is lost, and is never submitted again.
local function is_remote(b, index)
  local record = b.reattaches == 1 and redis.call('HGET', key(KEY.remote, b.id), index)
  return record and may_be_sent(record) and record
end
