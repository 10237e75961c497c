"""The routes of events: pages, long polls and streams."""
