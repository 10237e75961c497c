"""Batches that other arq applications enqueue as plain arq messages"""
