"""Each claim as a command, beside the peer that it is made against: `python -m benchmarks [NAME]`."""
