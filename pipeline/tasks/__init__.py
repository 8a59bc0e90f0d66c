"""The tasks of the stages: plain functions of one job, each of which reads, computes and writes."""
