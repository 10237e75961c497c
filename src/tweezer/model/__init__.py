"""Shared types: statuses, messages, ids and errors. Depends on the standard library and msgspec only."""
