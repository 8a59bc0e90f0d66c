"""Dask and signals: where work runs, how jobs are streamed to it, and what the user sees of it."""
