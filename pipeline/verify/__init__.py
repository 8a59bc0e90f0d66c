"""Verification of a data set, with one line of output per check."""
