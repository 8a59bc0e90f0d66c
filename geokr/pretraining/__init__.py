"""A training run: settings, views, objectives, steps, checkpoints and log."""
