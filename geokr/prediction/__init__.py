"""Predictions of class shares: the tiles they are for, and the maps and tables they become."""
