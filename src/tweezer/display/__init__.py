"""How jobs, batches and results look in notebooks, on pages and in terminals, as pure functions where possible."""
