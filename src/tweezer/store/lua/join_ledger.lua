-- join_ledger: the ledger of this installation records this Redis, unless another one does.
--
-- KEYS[1] namespace
-- ARGV installation:str, its id, which the ledger has   force:str '1': also when another ledger records it, else '0'
-- Returns {'ok'} | {'other', id of the installation that it belongs to}
-- Events  none
-- include: keys, maxmemory

local has = redis.call('GET', key(KEY.installation))
if has == installation then return { 'ok' } end
if has and force ~= '1' then return { 'other', has } end
exempt_from_maxmemory()
redis.call('SET', key(KEY.installation), installation)
return { 'ok' }
