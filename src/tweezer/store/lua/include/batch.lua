-- The batch record and the ticket records in it.
-- include: keys, generated/record

-- Returns the values of a record; nil if it is damaged. A record of the older version has each value in a field.
local function unpack_record(name, made, times, now)
  if not now then return read_older(name) end
  local is_read, raw = pcall(cjson.decode, '[' .. (made or '') .. ',' .. (times or '') .. ',' .. now .. ']')
  return is_read and raw or nil
end

-- Returns the batch as a table, or nil; for a batch of an unknown version, or with a damaged record, nil, 'version'. With
-- the number of a ticket, the second value is that ticket, or nil. extra: another field of the hash, for b.extra.
local function load_batch(id, n, extra)
  local name = key(KEY.batch, id)
  local row = redis.call('HMGET', name, 'v', 'project', 't:' .. (n or ''), 'made', 'times', 'now', extra or 'v')
  if not row[1] then return nil end
  local raw = (row[1] == VERSION or row[1] == OLDER) and unpack_record(name, row[4], row[5], row[6])
  if not raw then return nil, 'version' end
  local b, t = read_batch(id, raw), nil
  b.project, b.is_older, b.extra = row[2], not row[6], row[7]
  if b.fate == '' then b.fate = nil end
  if row[3] then
    local token, used, lane = string.match(row[3], '^(%S+) (%S+) (%S*)$')
    t = { n = n, name = id .. ':' .. n, token = token, used = tonumber(used), lane = lane }
  end
  return b, t
end

local BATCH_OVER = { D = true, E = true, C = true, T = true }

local function is_over(b) return BATCH_OVER[b.status] end
