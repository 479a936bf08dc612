"""Soak test of a real server: an hour of mixed load and faults, `make fire`."""
