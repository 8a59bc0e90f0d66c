"""What came of a build and of a training run, for a person."""
