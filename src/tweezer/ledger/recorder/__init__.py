"""The recorder, which writes the ledger from the stream of events and restores Redis after it lost its last writes."""
