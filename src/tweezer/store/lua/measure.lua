-- measure: measures the queue for operators. It reads only the front of each device's queue, so its duration does not
-- depend on the length of the queue.
--
-- KEYS[1] namespace
-- ARGV recorded:str, id of the last recorded entry of the stream, or ''
--     delivered:str, id of the last entry whose deliveries are written, or ''; later entries that the couriers have
--     acknowledged are not counted (the id may be from a restored backup)   entries_max:digits to count after each
--     tickets_max:int to read, both of the ready and of the leased ones
-- Returns {time (ms), entries in the stream, entries after the recorded one, id of the first of these or '', the same
--     two for deliveries, ended batches that are not forgotten, '1' if the gate is shut, '1' if a recorder is active, '1' if
--     a scheduler is, {device, '1' if paused, '1' if it starts jobs, '1' or '0': whether its machine answers, or '' without
--     a machine, pending, running, leases lost, stale settles, ready tickets, tickets that wait for a
--     time, leased tickets, live workers, lanes, busy lanes, free lanes of draining workers, batches
--     that were late, that expired, that their failures stopped, longest wait (ms) or -1},
--     …}
-- Events  none
-- include: clock, batch, ticket, streams, device

local events = key(KEY.events)

-- The submit time (ms) of the job that the batch hands out next; nil if no job waits.
local function since(id)
  local b = load_batch(id)
  if not b or b.pending == 0 then return nil end
  local index = int(b.cursor)
  if b.back > 0 then index = redis.call('LINDEX', key(KEY.back, id), 0) end
  local spec = index and redis.call('HGET', key(KEY.spec, id), index)
  return spec and tonumber(string.match(spec, '^%d+')) / 1000
end

local function longest_wait(device)
  local first, seen = nil, {}
  for _, pattern in ipairs({ KEY.ready, KEY.leases }) do
    for _, name in ipairs(redis.call('ZRANGE', key(pattern, device), 0, tickets_max - 1)) do
      local id = split_ticket(name)
      if not seen[id] then
        seen[id] = true
        first = math.min(first or NOW, since(id) or NOW)
      end
    end
  end
  return first and int(NOW - first) or '-1'
end

local function measure(device)
  local row = redis.call('HMGET', key(KEY.device, device), 'paused', 'pending', 'running', 'lost', 'stale', 'unsure',
    'late', 'expired', 'stopped')
  local about, answers = device_row(device), ''
  local workers, lanes, busy, draining = 0, 0, 0, 0
  for _, worker in ipairs(redis.call('ZRANGE', key(KEY.workers, device), 0, -1)) do
    local beat = redis.call('HMGET', key(KEY.worker, worker), 'lanes', 'busy', 'draining')
    if beat[1] then
      workers, lanes, busy = workers + 1, lanes + tonumber(beat[1]), busy + tonumber(beat[2] or 0)
      if beat[3] == '1' then draining = draining + tonumber(beat[1]) - tonumber(beat[2] or 0) end
    end
  end
  if about.exclusive or about.reattaches then answers = row[6] and '0' or '1' end
  return {
    device, row[1] and '1' or '0', lanes > 0 and not about.paused and '1' or '0', answers, row[2] or '0', row[3] or '0', row[4] or '0', row[5] or '0',
    redis.call('ZCARD', key(KEY.ready, device)), redis.call('ZCARD', key(KEY.due, device)),
    redis.call('ZCARD', key(KEY.leases, device)),
    workers, lanes, busy, draining, row[7] or '0', row[8] or '0', row[9] or '0', longest_wait(device),
  }
end

-- The number of entries from this bound on, and the id of the first.
local function count_from(bound)
  local entries = redis.call('XRANGE', events, bound, '+', 'COUNT', entries_max)
  return #entries, entries[1] and entries[1][1] or ''
end

local function count_undelivered(delivered)
  local bound = '(' .. delivered
  for _, group in ipairs(group_positions()) do
    if is_earlier(delivered, group.position) then bound = (group.is_pending and '' or '(') .. group.position end
  end
  return count_from(bound)
end

local unrecorded, first_unrecorded = 0, ''
if recorded ~= '' then unrecorded, first_unrecorded = count_from('(' .. recorded) end
local undelivered, first_undelivered = 0, ''
if delivered ~= '' then undelivered, first_undelivered = count_undelivered(delivered) end
local devices = redis.call('SMEMBERS', key(KEY.devices))
table.sort(devices)
local reply = {
  NOW_MS, redis.call('XLEN', events), unrecorded, first_unrecorded, undelivered, first_undelivered,
  redis.call('ZCARD', key(KEY.ended)), int(redis.call('EXISTS', key(KEY.gate))),
  int(redis.call('EXISTS', key(KEY.recorder))), int(redis.call('EXISTS', key(KEY.process, 'scheduler'))),
}
for _, device in ipairs(devices) do reply[#reply + 1] = measure(device) end
return reply
