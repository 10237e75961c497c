-- include: keys

-- Changes of the counters of devices and projects, by key and field; written once per script.
local tally = {}
local project_tally = {}

local function add_to(tallies, name, counter, change)
  if change == 0 then return end
  tallies[name] = tallies[name] or {}
  tallies[name][counter] = (tallies[name][counter] or 0) + change
end

local function count(device, counter, change) add_to(tally, key(KEY.device, device), counter, change) end

local function count_use(project, counter, change) add_to(project_tally, key(KEY.project, project), counter, change) end

-- A project's counter of 0 has no field, so that the key of a project without work is deleted.
local function save_counts()
  for name, counters in pairs(tally) do
    for counter, change in pairs(counters) do redis.call('HINCRBY', name, counter, int(change)) end
  end
  for name, counters in pairs(project_tally) do
    for counter, change in pairs(counters) do
      if change ~= 0 and redis.call('HINCRBY', name, counter, int(change)) == 0 then redis.call('HDEL', name, counter) end
    end
  end
  tally, project_tally = {}, {}
end
