"""Deliveries as they are found: archives, Gaofen products, STAC items, rasters, footprints."""
