"""A real server under an hour of mixed load and faults: `make fire`."""
