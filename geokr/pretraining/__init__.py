"""One training run: settings, views, objective, steps, checkpoints, log."""
