"""A campaign of faults: `python -m tests.faults --minutes=10`."""
