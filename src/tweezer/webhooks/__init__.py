"""Webhooks: from an event to a signed request, and its delivery"""
