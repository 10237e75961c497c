-- Names of tickets: the batch's id, a colon and a number.

local function split_ticket(name) return string.sub(name, 1, 36), string.sub(name, 38) end

local function ticket_name(b, n) return b.id .. ':' .. n end
