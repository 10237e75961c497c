"""The words of Tweezer: statuses, messages, ids, errors. Standard library and msgspec only."""
