"""Adapters: the code that executes jobs on one kind of device."""
