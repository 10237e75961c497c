-- The state of a job: a list of words, whose positions are S.<name>.
-- include: keys, generated/state

local function read_state(raw)
  if not raw then return fresh_state() end
  local st, n = {}, 0
  for word in string.gmatch(raw, '%S+') do n = n + 1; st[n] = word end
  return st
end

local function number_of(st, position) return tonumber(st[position]) or 0 end

local function write_state(b, index, st)
  redis.call('HSET', key(KEY.state, b.id), index, table.concat(st, ' '))
end
