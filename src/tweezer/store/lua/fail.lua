-- fail: the batch cannot run. What is pending, and what this ticket holds, ends in ERROR; the batch too,
-- once nothing runs any more.
--
-- KEYS[1] namespace
-- ARGV[1] ticket   [2] token   [3] Fault (JSON)   [4] lane time since the last call (ms)
-- Returns {'ok'} | {'stale'}
-- Events  job.error (ranges), batch.error
-- Gate    while it is shut: unavailable

exempt_from_maxmemory()
local b, t = load_held_ticket(ARGV[1], ARGV[2])
if not b then return { 'stale' } end
t.used = t.used + tonumber(ARGV[4])
local held = key(KEY.held, b.id, t.n)
for _, index in ipairs(redis.call('SMEMBERS', held)) do
  local st = read_state(redis.call('HGET', key(KEY.state, b.id), index))
  if st[S.status] == 'R' then
    end_job(b, index, st, 'E')
    write_state(b, index, st)
  end
end
doom(b, ARGV[3])
redis.call('DEL', held)
retire(b, t)
finish(b)
return { 'ok' }
