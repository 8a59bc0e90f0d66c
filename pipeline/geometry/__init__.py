"""Sensor, terrain and grid: arithmetic on values."""
