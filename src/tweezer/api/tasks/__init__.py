"""The routes of tasks: batches seen as one unit, with the names of other systems."""
