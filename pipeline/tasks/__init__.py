"""The tasks of the stages: ordinary functions of one value, straight through: read, compute, write."""
