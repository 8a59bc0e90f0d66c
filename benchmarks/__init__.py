"""One command for each performance claim, measured against its peer: `python -m benchmarks [NAME]`."""
