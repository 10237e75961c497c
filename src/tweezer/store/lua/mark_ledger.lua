-- mark_ledger: records that there is a ledger, from which this Redis can be restored.
--
-- KEYS[1] namespace
-- Returns {'ok' | 'new': there was no ledger before, id of the entry before which entries may have been trimmed, because they are recorded}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
local is_new = redis.call('SET', key(KEY.ledger), '0-0', 'NX')
return { is_new and 'new' or 'ok', redis.call('GET', key(KEY.ledger)) }
