-- include: device

-- The expected duration (ms) of a job of the batch: the average of its jobs, else the recent average of its device.
local function job_takes(b)
  local mean = device_row(b.device).job_ms or 0
  if b.worked > 0 and b.done > 0 then mean = b.worked / b.done end
  return b.timeout > 0 and math.min(mean, b.timeout) or mean
end

-- Whether the batch is expected to end before the next maintenance of its device: all its jobs if none has begun, else one
-- more job.
local function ends_in_time(b)
  local row = device_row(b.device)
  if not row.begins then return true end
  local turns = 1
  if b.started == 0 then turns = math.ceil(b.pending / (b.exclusive == 1 and 1 or math.max(row.lanes, 1))) end
  return NOW + turns * job_takes(b) <= row.begins
end
