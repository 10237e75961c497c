-- intend: says that a job is about to be submitted to a machine, before it is. The caller waits until this is on the disk.
-- Once it may have been submitted, see set_out, it is never handed out to be submitted again, whatever becomes of its
-- worker; until then another holder's intent takes the place of this one.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   name:str of this try, of its own: who repeats a call gives another
--     sent:str '1': it may be submitted from now on, '0': not before set_out
-- Returns {'new', record, since} | {'known'}: another one, and it may have been submitted | {'cancel'}: its cancel was
--     requested | {'stale'}; since: ms since this Redis may lack the last writes, or ''; record: microseconds of the
--     intent, its name, a job of the machine's that is older than any submit of this one or '-', the job's own or '-',
--     '1' if it may have been sent, 'T' if it was asked to stop because it took too long, else '0'
-- Events  batch.running and job.running for a job that was not begun
-- Gate    while it is shut: unavailable
-- include: held_ticket, intent, returns, job_moves, conclude, maxmemory, generated/job_over

exempt_from_maxmemory()
local b, t = load_held_ticket(ticket, token)
if not b then return { 'stale' } end
local id = b.id
if redis.call('SISMEMBER', key(KEY.held, id, t.n), index) == 0 then return { 'stale' } end
local record = redis.call('HGET', key(KEY.remote, id), index)
if record and may_be_sent(record) then return { 'known' } end
local st = read_state(redis.call('HGET', key(KEY.state, id), index))
if JOB_OVER[st[S.status]] then return { 'stale' } end
if st[S.cancel] ~= '-' then return { 'cancel' } end
local is_new = st[S.status] == 'P'
if is_new then
  begin_job(b, index, st, token, 'preparing')
  write_state(b, index, st)
end
if is_new or b.reattaches == 0 then
  b.reattaches = 1 -- also of a batch that came before its device's first worker
  finish(b)
end
local created_us = tonumber(string.match(redis.call('HGET', key(KEY.spec, id), index), '^%d+'))
local last = last_before(key(KEY.device, b.device), created_us)
record = table.concat({ NOW_US, name, last, '-', sent }, ' ')
redis.call('HSET', key(KEY.remote, id), index, record)
local since = came_back()
return { 'new', record, since > 0 and int(math.max(NOW - since, 0)) or '' }
