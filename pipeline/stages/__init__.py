"""The stages of a build, a file each: what is left to do, streamed, and what came of it."""
