"""The workers: arq as their runtime, tickets as their work."""
