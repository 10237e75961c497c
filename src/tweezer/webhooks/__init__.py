"""Webhooks: turn events into signed requests and deliver them."""
