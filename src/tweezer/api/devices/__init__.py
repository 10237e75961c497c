"""Devices and statistics over HTTP"""
