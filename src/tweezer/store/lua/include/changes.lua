-- Changes of a batch: its transitions and events, and saving it.
-- include: clock, counts, lists, generated/record, generated/batch_moves

local function emit(b, word, count)
  if #b.events == 0 then b.first_event = b.seq + 1 end
  b.seq = b.seq + (count or 1)
  b.events[#b.events + 1] = word
end

-- Marks a change without a transition that the ledger must record: it gets an entry without words.
local function touch(b) b.touched = true end

local function move_batch(b, to)
  if not string.find(BATCH_MOVES, b.status .. to, 1, true) then
    error('batch ' .. b.id .. ' cannot go from ' .. b.status .. ' to ' .. to)
  end
  emit(b, b.status .. to)
  b.status = to
end

local FAULTS_MAX = 16000 -- bytes of the faults in an entry

-- Adds why the attempt of a job failed that is repeated to the entry, if there is room. Equal faults share a line.
local function tell_fault(b, index, fault)
  local lines = b.faults or { bytes = 0 }
  b.faults = lines
  if lines[fault] then
    lines[lines[fault]] = index .. ',' .. lines[lines[fault]]
  elseif lines.bytes + #fault <= FAULTS_MAX then
    lines[#lines + 1] = index .. ' ' .. fault
    lines[fault], lines.bytes = #lines, lines.bytes + #fault
  end
end

-- Writes the record and the events of this call as one entry, and publishes them. The entry names the lane that held the
-- ticket (b.holder), why running jobs became pending (b.why), and the faults of their attempts (b.faults).
local function save(b)
  count_use(b.project, 'jobs', b.pending - b.charged)
  count_use(b.project, 'bytes', b.bytes - b.was_bytes)
  b.charged = b.pending
  if b.first_event ~= 1 then b.updated = NOW end
  local name = key(KEY.batch, b.id)
  if b.is_older then
    drop_older(name)
    put(b.changed, 'v', VERSION)
    put(b.changed, 'made', pack_made(b))
  end
  local times = pack_times(b)
  if times ~= NO_TIMES then put(b.changed, 'times', times) end
  put(b.changed, 'now', pack_now(b))
  if b.has_new_rules then put(b.changed, 'rules', cjson.encode(b.rules_by_name)) end
  redis.call('HSET', name, unpack(b.changed))
  count(b.device, 'pending', b.pending - b.was_pending)
  count(b.device, 'running', b.running - b.was_running)
  if b.touched or #b.events > 0 then
    local first, words = int(b.first_event or b.seq + 1), table.concat(b.events, ' ')
    local holder = b.holder or ''
    if b.why then holder = holder .. ' ' .. b.why end
    if b.faults and #b.faults > 0 then
      local faults = table.concat(b.faults, '\n')
      redis.call('XADD', key(KEY.events), '*', 'b', b.id, 's', first, 't', NOW_US, 'e', words, 'h', holder, 'f', faults)
    else
      redis.call('XADD', key(KEY.events), '*', 'b', b.id, 's', first, 't', NOW_US, 'e', words, 'h', holder)
    end
    if words ~= '' then redis.call('PUBLISH', key(KEY.news, b.id), words) end
  end
  if #b.asked > 0 then
    redis.call('PUBLISH', key(KEY.pool, b.device), b.id .. ' ' .. table.concat(b.asked, ','))
  end
end
