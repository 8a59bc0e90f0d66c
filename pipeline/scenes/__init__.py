"""Scenes as delivered: archives, Gaofen products, STAC items, rasters, and their footprints."""
