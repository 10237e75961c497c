-- look_up_batch: reads a batch if it is in the given projects, and its jobs if there are not too many.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   jobs_max:int, maximum number of jobs that are read, -1 for none
--     project_count:int, or -1 for any   projects:str...
-- Returns {fields of the record, each followed by its value; JobSpec of each job; states; faults}, the last three
--     empty if no jobs are read, nil for a missing value | {} if the batch does not exist in these projects
-- Events  none
-- include: projects, batch

local project = redis.call('HGET', key(KEY.batch, batch_id), 'project')
if not project or not is_among_projects(project, project_count, projects_first) then return {} end
local reply = { redis.call('HGETALL', key(KEY.batch, batch_id)), {}, {}, {} }
local b = jobs_max > 0 and load_batch(batch_id)
if b and b.jobs > 0 and b.jobs <= jobs_max then
  local indices = {}
  for index = 0, b.jobs - 1 do indices[index + 1] = index end
  for at, column in ipairs({ KEY.spec, KEY.state, KEY.fault }) do
    reply[at + 1] = redis.call('HMGET', key(column, batch_id), unpack(indices))
  end
end
return reply
