"""Reading the ledger: batches, jobs, events and statistics"""
