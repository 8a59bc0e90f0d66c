"""The sample world: a small world that knows its own truth, and the files that a user would have of it.

The default that runs on a fresh machine, and the tests' closed-form answer: where each pixel lies, what share each
class has.
"""
