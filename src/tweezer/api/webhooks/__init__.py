"""Webhooks and deliveries over HTTP"""
