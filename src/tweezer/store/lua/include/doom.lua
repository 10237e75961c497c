-- include: batch, end_pending

-- A batch that cannot run: no more jobs, what is pending ends in ERROR, what runs may finish.
local function doom(b, fault)
  if is_over(b) then return end
  b.open = 0
  b.fate = b.fate or 'E'
  redis.call('HSETNX', key(KEY.batch, b.id), 'fault', fault)
  touch(b)
  end_pending(b, 'E')
end
