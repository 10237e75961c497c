-- The order of a machine's jobs, as far as it is known.
-- include: restart

-- Returns the time of each restart of Redis and the last known job of the machine at that time: '<ms>:<uid>', separated by
-- spaces, oldest first. Of more than 50 the first two are merged: the time of the second, the job of the first. device:
-- its key.
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

-- Returns the last known job of the machine at a time before a job created at `created_us` can have been submitted, or
-- '-'. A job that existed when Redis restarted without its last writes may have been submitted in these.
local function last_before(device, created_us)
  for since, uid in string.gmatch(returns_of(device), '(%d+):(%S+)') do
    if created_us < since * 1000 then return uid end
  end
  return redis.call('HGET', device, 'last_uid') or '-'
end
