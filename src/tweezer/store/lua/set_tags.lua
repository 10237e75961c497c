-- set_tags: replaces the tags of a batch, whether or not it has ended. They stand beside its doc, whose own they hide.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''   [3] tags (JSON)
-- Returns {'ok'} | {'unknown'} | {'newer'}
-- Events  none: an entry without a word
-- Gate    while it is shut: unavailable, unless the batch was created since the restart

local b, none = load_own_batch(ARGV[1], ARGV[2])
if not b then return { none } end
redis.call('HSET', key(KEY.batch, b.id), 'tags', ARGV[3])
touch(b)
save(b)
save_counts()
return { 'ok' }
