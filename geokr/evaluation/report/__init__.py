"""The report of an evaluation: tables and pictures of its results."""
