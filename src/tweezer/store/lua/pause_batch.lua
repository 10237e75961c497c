-- pause_batch: no job of the batch is handed out until it is resumed; what runs finishes.
--
-- KEYS[1] namespace
-- ARGV[1] batch id   [2] project or ''
-- Returns {'ok'} | {'unknown'} | {'newer'} | {'over'}
-- Events  batch.paused, unless it is paused already
-- Gate    while it is shut: unavailable, unless the batch was created since the restart

exempt_from_maxmemory()
local b, none = load_own_batch(ARGV[1], ARGV[2])
if not b then return { none } end
if is_over(b) then return { 'over' } end
if b.status ~= 'S' then move_batch(b, 'S') end
finish(b)
return { 'ok' }
