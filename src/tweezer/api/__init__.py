"""The HTTP API: a thin skin over the store, in the words that Pasqal's clients know."""
