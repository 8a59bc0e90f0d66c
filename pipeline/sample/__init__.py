"""The sample world: a small synthetic world with known truth, and the files that a user would have of it.

It is the default input on a fresh machine, and it gives the tests closed-form answers: where each pixel lies, and what
share each class has.
"""
