-- look_up_jobs: reads jobs of any batches, each if it is in the given projects, with the required fields of its batch.
--
-- KEYS[1] namespace
-- ARGV jobs:{batch_id:str index:int project_count:int}[], project_count: -1 for any   projects:str..., of each job in turn
-- Returns a list with an element for each job: {project, fault of the batch or nil, its cancel requests or nil, JobSpec,
--     state or nil, fault or nil, version of the batch's record};
--     nil if the job does not exist in these projects
-- Events  none
-- include: projects, keys

local found, projects = {}, projects_first
for at = jobs_first, jobs_last, 3 do
  local id, index, project_count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local b, job = redis.call('HMGET', key(KEY.batch, id), 'project', 'fault', 'cancels', 'v'), false
  if b[1] and is_among_projects(b[1], project_count, projects) then
    local spec = redis.call('HGET', key(KEY.spec, id), index)
    local state = redis.call('HGET', key(KEY.state, id), index)
    job = spec and { b[1], b[2], b[3], spec, state, redis.call('HGET', key(KEY.fault, id), index), b[4] }
  end
  found[#found + 1] = job
  projects = projects + math.max(project_count, 0)
end
return found
