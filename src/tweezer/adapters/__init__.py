"""Adapters: the code that executes jobs, one adapter for each kind of device."""
