-- include: keys

-- Returns the indices of a held set in order. They are sorted as numbers, which needs no comparison function.
local function held_indices(b, t)
  local numbers = {}
  for i, index in ipairs(redis.call('SMEMBERS', key(KEY.held, b.id, t.n))) do numbers[i] = tonumber(index) end
  table.sort(numbers)
  local indices = {}
  for i, number in ipairs(numbers) do indices[i] = int(number) end
  return indices
end
