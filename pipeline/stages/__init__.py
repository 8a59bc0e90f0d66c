"""The stages of a build, one file each: find what is left to do, stream it, record the results."""
