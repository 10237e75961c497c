-- mark_ledger: records that there is a ledger, from which this Redis can be restored.
--
-- KEYS[1] namespace
-- Returns {'ok', id of the entry before which entries may have been trimmed, because they are recorded}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
redis.call('SET', key(KEY.ledger), '0-0', 'NX')
return { 'ok', redis.call('GET', key(KEY.ledger)) }
