"""Forwards batches to another server with the Pasqal API: Pasqal's cloud, or another Tweezer."""
