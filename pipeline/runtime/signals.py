"""Signals that stop a run: heard by the command alone, and never while its workers start."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def block_interrupts() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C: a terminal sends it to all, and stopping is the client's business.

    One that comes meanwhile is a KeyboardInterrupt at the end.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    # Held back, and not ignored: processes, and threads that start others later, inherit that, and it is not lost.
    resource_tracker.ensure_running()  # whose start would let it through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM, and the SIGHUP of a terminal that closes, meanwhile stop the program as Ctrl-C does.

    Otherwise they would leave the scratch space of its workers, up to 32 GiB, behind. They are a KeyboardInterrupt
    with the signal's number. One that is ignored, as SIGHUP by nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def report_stop(interrupt: KeyboardInterrupt) -> int:
    """Says that a command was stopped, and returns its exit status: 128 and the signal's number."""
    print("stopped; the same command goes on from here", file=sys.stderr)
    return 128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT)
