-- look_up_jobs: reads jobs of any batches, each for who asks for it. Of a batch no more is read than its jobs need.
--
-- KEYS[1] namespace
-- ARGV  for each job: batch id, index, number of projects (or '-1' for any), the ids of these projects
-- Returns a list with an element a job: {project, fault of the batch or nil, who cancelled jobs of it or nil, JobSpec,
--     state or nil, fault or nil, version of the batch's record};
--     nil for a job that is not there, or not in these projects
-- Events  none

local found, at = {}, 1
while at <= #ARGV do
  local id, index = ARGV[at], ARGV[at + 1]
  local b, job = redis.call('HMGET', key(KEY.batch, id), 'project', 'fault', 'cancels', 'v'), false
  if b[1] and is_among_projects(b[1], at + 2) then
    local spec = redis.call('HGET', key(KEY.spec, id), index)
    local state = redis.call('HGET', key(KEY.state, id), index)
    job = spec and { b[1], b[2], b[3], spec, state, redis.call('HGET', key(KEY.fault, id), index), b[4] }
  end
  found[#found + 1] = job
  at = at + 3 + math.max(tonumber(ARGV[at + 2]), 0)
end
return found
