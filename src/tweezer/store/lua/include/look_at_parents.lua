-- The batches that a new batch depends on.
-- include: gate, restart, conclude

-- Returns the ends of those that have ended, by id, and the reply if the project lacks some of them, or nil.
-- ARGV[first…last]: id, letter of When, and how it ended according to the ledger, or ''.
local function look_at_parents(project, first, last)
  local ends, unknown = {}, { 'unknown_parents' }
  for at = first, last, 3 do
    local parent, ended = load_batch(ARGV[at]), ARGV[at + 2]
    if parent and parent.project == project then ended = is_over(parent) and end_of(parent) or nil end
    if ended == '' then unknown[#unknown + 1] = ARGV[at] else ends[ARGV[at]] = ended end
  end
  if #unknown == 1 then return ends end
  if is_shut() then refuse_while_shut() end
  return ends, unknown
end
