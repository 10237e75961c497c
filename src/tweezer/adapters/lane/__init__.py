"""Lanes whose jobs run in a child process: the worker's side, the process, and its jail."""
