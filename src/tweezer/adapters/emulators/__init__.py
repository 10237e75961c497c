"""Backends of lane processes: Pulser's sequences and the emulators that run them."""
