"""A worker: takes tickets, executes their jobs on lanes, and settles them"""
