"""From shards to batches: which tiles, in which order, as tensors."""
