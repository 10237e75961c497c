"""The stream of events, and messages to those who wait"""
