-- forget: removes batches that have ended and are recorded in the ledger up to their last event. Their results still count
-- towards the quota.
--
-- KEYS[1] namespace
-- ARGV least_age_ms:int since their end   batches:{batch_id:str recorded:int}..., recorded: number of the last
--     recorded event
-- Returns a word for each batch: 'ok' | 'unknown' | 'live': not terminal for long enough, or of
--     another version | 'unrecorded': it has later events
-- Events  none
-- Gate    open or shut: a batch is removed only if it has exactly the events that the ledger has
-- include: clock, batch, ticket, counts, batch_keys

local function forget(id, recorded)
  local b, problem = load_batch(id)
  if problem then return 'live' end
  if not b then
    redis.call('ZREM', key(KEY.ended), id)
    return 'unknown'
  end
  if not is_over(b) or NOW - b.ended < least_age_ms then return 'live' end
  if b.seq ~= tonumber(recorded) then return 'unrecorded' end
  for n = 0, b.slots - 1 do
    redis.call('ZREM', key(KEY.leases, b.device), ticket_name(b, int(n)))
    redis.call('DEL', key(KEY.held, id, int(n)))
  end
  unlink_batch(id)
  count_use(b.project, 'jobs', -b.charged)
  count_use(b.project, 'bytes', -b.bytes)
  count_use(b.project, 'results', -b.results)
  count_use(b.project, 'kept', b.results)
  return 'ok'
end

local words = {}
for at = batches_first, batches_last, 2 do words[#words + 1] = forget(ARGV[at], ARGV[at + 1]) end
save_counts()
return words
