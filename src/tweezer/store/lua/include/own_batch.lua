-- include: batch, restart

-- Returns a batch that the script may change, if it exists and belongs to the project ('' matches any, for workers and
-- operators). While the gate is shut, only a batch that was created since the restart is returned. Without a batch the
-- second value is the reply: 'newer' if a newer Tweezer wrote it, 'damaged', or 'unknown'.
local function load_own_batch(id, project)
  local b, problem = load_batch(id)
  if problem then
    local row = redis.call('HMGET', key(KEY.batch, id), 'v', 'project')
    if project == '' or row[2] == project then
      if problem == 'damaged' then return nil, 'damaged' end
      if tonumber(row[1]) and tonumber(row[1]) > tonumber(VERSION) then return nil, 'newer' end
    end
  end
  if b and project ~= '' and b.project ~= project then b = nil end
  local shut_us = redis.call('GET', key(KEY.gate)) -- when Redis restarted
  if shut_us and not (b and tonumber(b.created) > (tonumber(shut_us) or came_back() * 1000)) then refuse_while_shut() end
  return b, 'unknown'
end
