-- include: batch, ticket, gate, restart

-- Returns a ticket and its batch, or nil if the token is stale. For scripts with which the holder changes jobs. They are
-- refused while the gate is shut, because all tickets are then from before the restart.
local function load_held_ticket(name, token)
  if is_shut() then refuse_while_shut() end
  local id, n = split_ticket(name)
  local b, t = load_batch(id, n)
  if not b or not t or t.token ~= token then return nil end
  return b, t
end
