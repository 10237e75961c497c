"""A lane: a child process that executes jobs, and the worker's side of it"""
