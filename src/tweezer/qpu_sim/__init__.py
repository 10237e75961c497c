"""A QPU that speaks Pasqal's on-premises API, for rehearsals and tests: an emulator, with a machine's misbehaviours."""
