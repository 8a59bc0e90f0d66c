"""Readable reports of a build and of a training run."""
