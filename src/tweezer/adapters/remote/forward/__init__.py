"""Batches that another server with the Pasqal API runs: Pasqal's cloud, or another Tweezer."""
