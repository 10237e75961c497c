"""Writing the ledger from the stream of events, and back into a Redis that lost its last writes"""
