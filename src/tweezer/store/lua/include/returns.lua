-- What is known of the order of a machine's jobs.
-- include: restart

-- When Redis came back, and the last job that the machine was known to have then, for each return: '<ms>:<uid>' by
-- blanks, oldest first. Of more than 50 the first two become one, as if both were the first. device: its key.
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

-- The last job that the machine was known to have when a job of this age can not have been submitted yet, or '-': of
-- one that was there when Redis came back without its last writes, they may have been about its submit.
local function last_before(device, created_us)
  for since, uid in string.gmatch(returns_of(device), '(%d+):(%S+)') do
    if created_us < since * 1000 then return uid end
  end
  return redis.call('HGET', device, 'last_uid') or '-'
end
