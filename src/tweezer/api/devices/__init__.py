"""The routes of devices and statistics."""
