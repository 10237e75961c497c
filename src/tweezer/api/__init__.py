"""The HTTP API: a thin layer over the store and the ledger, compatible with Pasqal's clients."""
