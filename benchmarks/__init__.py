"""Measurements of the service: `make bench`, `make fidelity`."""
