-- look_up_batch: reads a batch, for who asks for it, and its jobs if there are not many.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] number of jobs up to which they are read as well, '-1' for never
--     [3] number of projects, or '-1' for any   [4…] their ids
-- Returns {fields of the record, each followed by its value; JobSpec of each job; states; faults}, the last three
--     empty without jobs, a nil in them for none | {} for a batch that is not there, or not in these projects
-- Events  none

local id = ARGV[1]
local project, jobs = unpack(redis.call('HMGET', key(KEY.batch, id), 'project', 'jobs'))
if not project or not is_among_projects(project, 3) then return {} end
local reply = { redis.call('HGETALL', key(KEY.batch, id)), {}, {}, {} }
jobs = tonumber(jobs or 0)
if jobs > 0 and jobs <= tonumber(ARGV[2]) then
  local indices = {}
  for index = 0, jobs - 1 do indices[index + 1] = index end
  for at, column in ipairs({ KEY.spec, KEY.state, KEY.fault }) do
    reply[at + 1] = redis.call('HMGET', key(column, id), unpack(indices))
  end
end
return reply
