"""Tweezer on one machine: ``tweezer up``, ``tweezer demo``, and the Redis that they start."""
