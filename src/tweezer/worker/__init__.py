"""The worker: takes tickets, runs their jobs on lanes, and settles them."""
