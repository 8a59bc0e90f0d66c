"""A call as bytes, which a scheduler passes on without importing what is called.

A scheduler unpickles each task that it is given. This module imports nothing of a build, so it stays small and quick.
"""

from collections.abc import Callable
from typing import Any

from distributed.protocol import pickle


def pack(function: Callable[..., Any], *arguments: Any) -> bytes:
    """A function and its arguments, pickled."""
    return bytes(pickle.dumps((function, arguments)))


def call(packed: bytes) -> Any:
    """The result of a function that `pack` packed."""
    function, arguments = pickle.loads(packed)
    return function(*arguments)
