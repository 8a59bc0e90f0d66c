"""Sensor models, terrain heights and tile grids."""
