"""Health, metrics and workloads"""
