"""Adapters of devices whose jobs run elsewhere: on a QPU, or on another server."""
