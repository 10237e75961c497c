-- fail: ends a batch that cannot run. Its pending jobs and those that this ticket holds end in ERROR; so does the batch,
-- once no job is running.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   fault:bytes, Fault (JSON)   used_ms:int, lane time since the last call
-- Returns {'ok'} | {'stale'}
-- Events  job.error (ranges), batch.error
-- Gate    while shut: unavailable
-- include: held_ticket, give_back, doom, finish, maxmemory

exempt_from_maxmemory()
local b, t = load_held_ticket(ticket, token)
if not b then return { 'stale' } end
t.used = t.used + used_ms
local held = key(KEY.held, b.id, t.n)
for _, index in ipairs(redis.call('SMEMBERS', held)) do
  local st = read_state(redis.call('HGET', key(KEY.state, b.id), index))
  if st[S.status] == 'R' then
    end_job(b, index, st, 'E')
    write_state(b, index, st)
  end
end
doom(b, fault)
redis.call('DEL', held)
retire(b, t)
finish(b)
return { 'ok' }
