"""Batches and jobs over HTTP"""
