-- include: counts

-- Counts a result that this script stores.
local function keep_result(b, bytes)
  b.results = b.results + bytes
  count_use(b.project, 'results', bytes)
end
