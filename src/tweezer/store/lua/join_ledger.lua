-- join_ledger: the ledger of this installation records this Redis, unless another one does.
--
-- KEYS[1] namespace
-- ARGV[1] id of the installation, which the ledger has   [2] '1': also when another ledger records it
-- Returns {'ok'} | {'other', id of the installation that it belongs to}
-- Events  none

local has = redis.call('GET', key(KEY.installation))
if has == ARGV[1] then return { 'ok' } end
if has and ARGV[2] ~= '1' then return { 'other', has } end
exempt_from_maxmemory()
redis.call('SET', key(KEY.installation), ARGV[1])
return { 'ok' }
