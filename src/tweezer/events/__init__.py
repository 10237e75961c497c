"""Webhooks: events to signed requests, and their delivery."""
