-- set_tags: replaces the tags of a batch, whether or not it has ended. They take precedence over the tags in its doc.
--
-- KEYS[1] namespace
-- ARGV batch_id:str   project:str or ''   tags:bytes (JSON)
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'damaged'}
-- Events  an entry without words
-- Gate    while shut: unavailable, unless the batch was created since the restart
-- include: own_batch, changes

local b, none = load_own_batch(batch_id, project)
if not b then return { none } end
redis.call('HSET', key(KEY.batch, b.id), 'tags', tags)
touch(b)
save(b)
save_counts()
return { 'ok' }
