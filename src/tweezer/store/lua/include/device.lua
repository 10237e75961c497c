-- include: clock

-- A device, read once per script: its live lanes, whether it is paused (by an operator, for maintenance, or because it is
-- down), whether it is withheld (the same, except down), whether one batch has it to itself, whether its jobs continue
-- without their worker, how long its jobs take, when its next planned maintenance begins, and its pending jobs with their
-- limit.
local device_rows = {}

local function device_row(device)
  if not device_rows[device] then
    local row = redis.call('HMGET', key(KEY.device, device), 'lanes', 'paused', 'down', 'exclusive', 'job_ms', 'window',
      'reattaches', 'pending', 'max_backlog')
    local it = { lanes = tonumber(row[1] or 0), paused = (row[2] or row[3]) and true, exclusive = row[4] == '1' }
    it.is_known, it.withheld = row[1] and true, row[2] and true
    it.job_ms, it.reattaches = tonumber(row[5]), row[7] == '1'
    it.pending, it.max_backlog = tonumber(row[8] or 0), tonumber(row[9] or 0)
    if row[6] then
      local begins, ends = string.match(row[6], '^(%d+) (%d+)')
      if NOW < tonumber(begins) then
        it.begins = tonumber(begins)
      elseif NOW < tonumber(ends) then
        it.paused, it.withheld = true, true
      end
    end
    device_rows[device] = it
  end
  return device_rows[device]
end

-- Whether a worker or an operator has created the device.
local function is_known(device) return device_row(device).is_known or redis.call('EXISTS', key(KEY.device, device)) == 1 end

local function is_paused(device) return device_row(device).paused end

local function is_withheld(device) return device_row(device).withheld end
