-- look_up_jobs: reads jobs of any batches, each for who asks for it. Of a batch no more is read than its jobs need.
--
-- KEYS[1] namespace
-- ARGV jobs:{batch_id:str index:int project_count:int}[], the last -1 for any   projects:str... of each job in turn
-- Returns a list with an element a job: {project, fault of the batch or nil, who cancelled jobs of it or nil, JobSpec,
--     state or nil, fault or nil, version of the batch's record};
--     nil for a job that is not there, or not in these projects
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
