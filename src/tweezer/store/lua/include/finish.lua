-- The end of scripts that change batches.
-- include: dependents

-- Handles the batches that depend on those that the script ended, and writes what it changed in devices and projects.
local function save_totals()
  if #ended_batches > 0 then handle_ends() end
  save_counts()
  save_shares()
end

-- The last step of every script that changes a batch.
local function finish(b)
  conclude(b)
  save(b)
  save_totals()
end
