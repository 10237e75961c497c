"""Machines: Pasqal's on-premises QPU API, spoken as a client."""
