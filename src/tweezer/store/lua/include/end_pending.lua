-- The end of all pending jobs of a batch.
-- include: job_ends, cancel, ranges, remote

-- Ends every pending job with one status: those that came back, wait for a retry, or are held but have not begun, then
-- those that were never handed out. Returns the running jobs with their states. Running jobs on a machine without a
-- holder continue to wait for one.
local function end_pending(b, to)
  local states, written, ranges, running = key(KEY.state, b.id), {}, {}, {}
  local function close(index, raw)
    local st = read_state(raw)
    if st[S.status] == 'R' then running[#running + 1] = { index, st } end
    if st[S.status] ~= 'P' then return end
    if to == 'C' then
      note_request(st)
      st[S.outcome] = 'prevented'
    end
    st[S.status], st[S.ended] = to, NOW_MS
    written[#written + 1] = index
    written[#written + 1] = table.concat(st, ' ')
    add_to_ranges(ranges, index)
  end
  local function close_all(indices)
    for first = 1, #indices, 500 do
      local page = { unpack(indices, first, math.min(first + 499, #indices)) }
      local raw = redis.call('HMGET', states, unpack(page))
      for i, index in ipairs(page) do close(tonumber(index), raw[i]) end
      each_thousand('HSET', states, written)
      written = {}
    end
  end
  close_all(redis.call('LRANGE', key(KEY.back, b.id), 0, -1))
  close_all(redis.call('ZRANGE', key(KEY.delay, b.id), 0, -1))
  for n = 0, b.slots - 1 do close_all(redis.call('SMEMBERS', key(KEY.held, b.id, int(n)))) end
  local fresh = {}
  for index = b.cursor, b.jobs - 1 do fresh[#fresh + 1] = int(index) end
  close_all(fresh)
  local on_machine = {}
  if has_remote(b) then
    for _, index in ipairs(redis.call('LRANGE', key(KEY.back, b.id), 0, -1)) do
      if read_state(redis.call('HGET', states, index))[S.status] == 'R' then on_machine[#on_machine + 1] = index end
    end
  end
  redis.call('DEL', key(KEY.back, b.id), key(KEY.delay, b.id))
  b.back, b.delayed, b.cursor = 0, 0, b.jobs
  come_back(b, on_machine)
  for _, range in ipairs(ranges) do
    local count = range[2] - range[1] + 1
    b.pending = b.pending - count
    b[COUNTER[to]] = b[COUNTER[to]] + count
    emit(b, range_word(range) .. 'P' .. to, count)
  end
  return running
end
