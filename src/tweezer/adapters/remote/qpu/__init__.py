"""The adapter of QPUs, a client of Pasqal's on-premises API."""
