-- The batch record and the ticket records in it.
-- include: keys, generated/record

-- Returns the batch as a table, or nil; for a batch of an unknown version nil, 'version'. With the number of a ticket, the
-- second value is that ticket, or nil.
local function load_batch(id, n)
  local raw = redis.call('HMGET', key(KEY.batch, id), 't:' .. (n or ''), unpack(FIELDS))
  if not raw[2] then return nil end
  if raw[2] ~= VERSION then return nil, 'version' end
  local t
  if raw[1] then
    local token, used, lane = string.match(raw[1], '^(%S+) (%S+) (%S*)$')
    t = { n = n, name = id .. ':' .. n, token = token, used = tonumber(used), lane = lane }
  end
  return read_batch(id, raw), t
end

local BATCH_OVER = { D = true, E = true, C = true, T = true }

local function is_over(b) return BATCH_OVER[b.status] end
