-- intend: records the intent to submit a job to a machine. The caller waits until this is on the disk before it submits.
-- Once the job may have been submitted (see set_out) it is never submitted again, even if its worker is lost; until then
-- the intent of another holder replaces this one.
--
-- KEYS[1] namespace
-- ARGV ticket:str   token:str   index:digits   name:str, unique to this attempt: a repeated call uses another name
--     sent:str '1': the job may be submitted from now on, '0': not before set_out
-- Returns {'new', record, since} | {'known'}: the job may have been submitted by another intent | {'cancel'}: its cancel
--     was requested | {'stale'}; since: ms since this Redis may have lost its last writes, or ''; record: time of the
--     intent (us), its name, a job on the machine that is older than any submission of this one or '-', the job's id on
--     the machine or '-', '1' if it may have been sent, 'T' if it was asked to stop because of its time limit, else '0'
-- Events  batch.running and job.running for a job that had not begun
-- Gate    while shut: unavailable
-- include: held_ticket, intent, returns, job_moves, finish, maxmemory, generated/job_over

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
  b.reattaches = 1 -- also for a batch that was submitted before its device's first worker started
  finish(b)
end
local created_us = tonumber(string.match(redis.call('HGET', key(KEY.spec, id), index), '^%d+'))
local last = last_before(key(KEY.device, b.device), created_us)
record = table.concat({ NOW_US, name, last, '-', sent }, ' ')
redis.call('HSET', key(KEY.remote, id), index, record)
local since = came_back()
return { 'new', record, since > 0 and int(math.max(NOW - since, 0)) or '' }
