-- include: batch, end_pending

-- Closes a batch that cannot run. Its pending jobs end in ERROR; running jobs may finish.
local function doom(b, fault)
  if is_over(b) then return end
  b.open = 0
  b.fate = b.fate or 'E'
  redis.call('HSETNX', key(KEY.batch, b.id), 'fault', fault)
  touch(b)
  end_pending(b, 'E')
end
