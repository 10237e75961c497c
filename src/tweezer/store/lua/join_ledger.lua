-- join_ledger: records that this Redis belongs to an installation and its ledger, unless it belongs to another one.
--
-- KEYS[1] namespace
-- ARGV installation:str, the id in the ledger   force:str '1': even if it belongs to another one, else '0'
-- Returns {'ok'} | {'other', id of the installation that it belongs to}
-- Events  none
-- include: keys, maxmemory

local has = redis.call('GET', key(KEY.installation))
if has == installation then return { 'ok' } end
if has and force ~= '1' then return { 'other', has } end
exempt_from_maxmemory()
redis.call('SET', key(KEY.installation), installation)
return { 'ok' }
