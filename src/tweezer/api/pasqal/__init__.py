"""Paths and names that exist only for Pasqal's clients"""
