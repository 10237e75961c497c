-- include: dependents

-- Applies the ends that other scripts left in `releases`, at most `most`. An end of '?' is looked up here: the batch may be
-- live, or missing. Nothing happens while the gate is shut.
local function handle_releases(most)
  if is_shut() then return end
  local releases = key(KEY.releases)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', releases, '-inf', NOW_MS, 'LIMIT', 0, most)) do
    redis.call('ZREM', releases, name)
    local id, ended = string.sub(name, 1, 36), string.sub(name, 38)
    if ended == '?' then
      local b, problem = load_batch(id)
      ended = b and (is_over(b) and end_of(b) or nil) or not b and ''
      if problem then
        ended = nil
        redis.call('ZADD', releases, int(NOW + LEAVE_ALONE), name)
      end
    end
    if ended then ended_batches[#ended_batches + 1] = { id, ended } end
  end
  handle_ends()
end
