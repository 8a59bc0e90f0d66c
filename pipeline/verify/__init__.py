"""Proof of a data set, a line a check."""
