-- apply_ends: applies the ends of batches to those that wait for them, as far as other scripts left that to be done. The sweep
-- does the same; this is for a submit of a batch that depends on one that has ended.
--
-- KEYS[1] namespace
-- ARGV most:int ends
-- Returns {'ok'}
-- Events  job.canceled (ranges) and batch.canceled of a batch that waits for one that has not ended as required; batch.done of
--     a closed one without jobs; an entry for one that still waits, or may start
-- Gate    while shut nothing happens
-- include: releases, finish, maxmemory

exempt_from_maxmemory()
handle_releases(most)
save_totals()
return { 'ok' }
