"""Schedules: batches that are submitted at certain times."""
