-- Whether a project is among the `many` ids in ARGV from `first` on; -1 means any project.
local function is_among_projects(project, many, first)
  for at = first, first + many - 1 do
    if ARGV[at] == project then return true end
  end
  return many < 0
end
