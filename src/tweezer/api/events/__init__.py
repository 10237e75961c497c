"""Events over HTTP: pages, long polls and streams"""
