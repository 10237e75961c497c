-- The queue of a device: tickets that can be taken, and tickets that wait for a time.
-- include: clock, lists, fair_share, remote, generated/priorities

-- Adds a ticket's record to the changes of its batch: token ('0' without a holder), milliseconds of service used, lane.
local function write_ticket(b, t)
  put(b.changed, 't:' .. t.n, t.token .. ' ' .. int(t.used) .. ' ' .. t.lane)
end

local BEFORE_ALL = -1e14 -- a rank before all others

local function waiting(b) return b.jobs - b.cursor + b.back end

-- Queues a ticket as ready or, if `due` is in the future, to wait until then. A ticket whose batch has a job on a machine
-- precedes all others, because another batch's submission would displace that job; so does one whose batch had the machine
-- to itself when its holder left. An exclusive device stays taken while such a ticket waits.
local function queue_ticket(b, t, due)
  t.token, t.used, t.lane = '0', 0, ''
  write_ticket(b, t)
  local comes_first, later = has_remote(b) or b.reserved > 0 or t.had_machine, due and due > NOW
  if later and not (comes_first and b.exclusive == 1) then
    redis.call('ZADD', key(KEY.due, b.device), int(due), t.name)
    return
  end
  local start = rank(b)
  charge(b, start + setting('quantum'))
  if later then
    redis.call('ZADD', key(KEY.leases, b.device), int(due), t.name)
  else
    redis.call('ZADD', key(KEY.ready, b.device), int(comes_first and BEFORE_ALL or start + PENALTY[b.priority]), t.name)
  end
end
