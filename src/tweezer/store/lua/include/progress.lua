-- The progress of running jobs.
-- include: keys

-- steps, message: words as messages.pack_steps makes them, or '-'.
local function set_progress(st, percent, steps, message)
  st[S.progress], st[S.message], st[S.steps] = percent, nil, nil
  if steps == '-' and message == '-' then return end
  for at = 1, S.outcome do st[at] = st[at] or '-' end -- an older state has fewer words
  st[S.steps], st[S.message] = steps, message
end

-- Publishes the progress of a job: the usual words on the channel of its batch, and all words on another channel, because
-- listeners of older versions reject a line with more words.
local function publish_progress(b, index, st)
  local line = '~' .. index .. ' ' .. st[S.stage] .. ' ' .. st[S.progress]
  redis.call('PUBLISH', key(KEY.news, b.id), line)
  if st[S.steps] then redis.call('PUBLISH', key(KEY.steps, b.id), line .. ' ' .. st[S.steps] .. ' ' .. st[S.message]) end
end
