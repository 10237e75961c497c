"""Tweezer: a self-hosted, asynchronous job queue for neutral-atom quantum work."""

__version__ = "0.1.0"
