"""Iteration in a thread of its own, one item ahead of the consumer."""

import atexit
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def iterate_in_thread(items: Iterator[Item]) -> Iterator[Item]:
    """Iterate over `items` in a thread, which starts with the first item and ends when this generator is closed.

    While the consumer works on an item, the thread makes the next one and waits with it. An error of `items` is raised
    to the consumer, after the items before it.
    """
    made: queue.Queue[list[Item] | BaseException | None] = queue.Queue(maxsize=1)  # None after the last item
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put([item])
                if stopped.is_set():
                    return
        except BaseException as error:
            made.put(error)
        else:
            made.put(None)

    def stop() -> None:
        stopped.set()
        if not thread.is_alive():
            return
        while not made.empty():  # the thread may wait to put one more item, and ends after it
            made.get()
        thread.join()

    thread = threading.Thread(target=make, name="tiles", daemon=True)
    thread.start()
    # A daemon thread does not keep a process alive that leaves an epoch unfinished. It must end before the interpreter
    # does, because a thread that is killed inside of tensorstore aborts the process.
    atexit.register(stop)
    try:
        while (result := made.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result[0]
    finally:
        atexit.unregister(stop)
        stop()
