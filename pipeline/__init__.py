"""Data engineering: from satellite scenes to tiles, labels and an index, in parallel and resumable."""
