"""From shards to batches: selection of tiles, their order, and their pixels as tensors."""
