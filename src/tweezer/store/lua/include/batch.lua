-- The batch record and the ticket records in it.
-- include: keys, generated/record

local LEAVE_ALONE = 5000 -- ms until a batch that cannot be read is checked again

-- Returns the values of a record; nil if it is damaged. A record of the older version has each value in a field.
local function unpack_record(version, name, made, times, now)
  if version == OLDER then return read_older(name) end
  local is_read, raw = pcall(cjson.decode, '[' .. (made or '') .. ',' .. (times or NO_TIMES) .. ',' .. (now or '') .. ']')
  return is_read and #raw >= USUAL_VALUES and raw or nil
end

-- Returns the batch as a table, or nil. With the number of a ticket, the second value is that ticket, or nil. Without a
-- batch, the second value is 'version' if the batch has an unknown version, 'damaged' if its record cannot be read, or nil.
-- extra: another field of the hash, for b.extra. b.rules: see include/rules.lua; false without any.
local function load_batch(id, n, extra)
  local name = key(KEY.batch, id)
  local row = redis.call('HMGET', name, 'v', 'project', 't:' .. (n or ''), 'made', 'times', 'now', 'rules',
    extra or 'v')
  if not row[1] then return nil end
  if row[1] ~= VERSION and row[1] ~= OLDER then return nil, 'version' end
  local raw = unpack_record(row[1], name, row[4], row[5], row[6])
  if not raw then return nil, 'damaged' end
  local b, t = read_batch(id, raw), nil
  b.project, b.is_older, b.rules, b.extra = row[2], row[1] == OLDER, row[7], row[8]
  if b.fate == '' then b.fate = nil end
  if row[3] then
    local token, used, lane = string.match(row[3], '^(%S+) (%S+) (%S*)$')
    t = { n = n, name = id .. ':' .. n, token = token, used = tonumber(used), lane = lane }
    b.holder = lane
  end
  return b, t
end

local BATCH_OVER = { D = true, E = true, C = true, T = true }

local function is_over(b) return BATCH_OVER[b.status] end
