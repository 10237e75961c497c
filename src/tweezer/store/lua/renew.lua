-- renew: renews the lease of a ticket, reports the progress of its jobs, and returns the jobs that must be stopped.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   lease_ms:int   progress:{index:digits stage:str percent:str steps:str message:str}...,
--     percent: a number or '-'; steps, message: words as pack_steps makes them, or '-'
-- Returns {'ok', index of a job that is over or whose cancel was requested, …} | {'stale'} | {'shut'}
-- Events  batch.running and job.running for a held job that had not begun; progress is published, not an event
-- Gate    while shut: the lease is renewed and shut is returned; the progress must be sent again
-- include: gate, batch, ticket, job_moves, progress, finish, maxmemory, generated/job_over

exempt_from_maxmemory()
local id, n = split_ticket(ticket)
local b, t = load_batch(id, n)
if not b or not t or t.token ~= token then return { 'stale' } end
redis.call('ZADD', key(KEY.leases, b.device), int(NOW + lease_ms), t.name)
if is_shut() then return { 'shut' } end

local held = redis.call('SMEMBERS', key(KEY.held, id, n))
if #held == 0 then return { 'ok' } end
local raw, states, reply = redis.call('HMGET', key(KEY.state, id), unpack(held)), {}, { 'ok' }
for i, index in ipairs(held) do states[index] = read_state(raw[i]) end
local news = {}
for at = progress_first, progress_last, 5 do
  local index, stage, percent, steps, message = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local st = states[index]
  if st and not JOB_OVER[st[S.status]] then
    if st[S.status] == 'P' then begin_job(b, index, st, token, stage) end
    if st[S.stage] ~= stage then st[S.stage], st[S.staged] = stage, NOW_MS end
    set_progress(st, percent, steps, message)
    write_state(b, index, st)
    news[#news + 1] = { index, st }
  end
end
for index, st in pairs(states) do
  if st[S.cancel] ~= '-' or JOB_OVER[st[S.status]] then reply[#reply + 1] = index end
end
if #b.events > 0 then finish(b) end
for _, it in ipairs(news) do publish_progress(b, it[1], it[2]) end
return reply
