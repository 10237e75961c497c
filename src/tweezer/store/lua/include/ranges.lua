-- Ranges of indices, in the form of the words of events.
-- include: keys

-- Appends an index to a list of ranges {first, last}, merging consecutive indices.
local function add_to_ranges(ranges, index)
  local last = ranges[#ranges]
  if last and last[2] == index - 1 then last[2] = index else ranges[#ranges + 1] = { index, index } end
end

local function range_word(range)
  return range[1] == range[2] and int(range[1]) or int(range[1]) .. '-' .. int(range[2])
end
