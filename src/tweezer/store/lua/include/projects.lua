-- Whether a project is among those whose ids ARGV has from a place on; -1 of them are any.
local function is_among_projects(project, many, first)
  for at = first, first + many - 1 do
    if ARGV[at] == project then return true end
  end
  return many < 0
end
