"""Tweezer on one machine: up, demo, and the Redis that they start"""
