-- mark_ledger: there is a ledger from now on: what this Redis loses can be put back.
--
-- KEYS[1] namespace
-- Returns {'ok', id of the entry before which entries may be gone, because a ledger had them}
-- Events  none
-- include: keys, maxmemory

exempt_from_maxmemory()
redis.call('SET', key(KEY.ledger), '0-0', 'NX')
return { 'ok', redis.call('GET', key(KEY.ledger)) }
