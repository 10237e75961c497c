"""A simulated QPU with Pasqal's on-premises API, for rehearsals and tests: an emulator that can misbehave."""
