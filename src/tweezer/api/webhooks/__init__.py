"""The routes of webhooks and deliveries."""
