"""Dask and signals: where work runs, how it is streamed, and what a person sees of it."""
