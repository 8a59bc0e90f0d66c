"""Signals that stop a run: only the main process handles them, and never while its workers start."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

SEND_AGAIN = 0.05
"""Seconds after which a signal is sent again that Python has dropped."""


@contextmanager
def block_interrupts() -> Iterator[None]:
    """Keep Ctrl-C away from processes that are started while the context is active.

    A terminal sends SIGINT to all its processes, but only the client should stop the run. A SIGINT that arrives while
    the context is active becomes a KeyboardInterrupt when it ends.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    # Blocked rather than ignored: child processes, and threads that start others later, inherit the mask, and the
    # signal is delivered once it is unblocked.
    resource_tracker.ensure_running()  # started now, because its start would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM, and the SIGHUP of a closing terminal, stop the program as Ctrl-C does while the context is active.

    Otherwise they would leave behind the scratch space of the workers, up to 32 GiB. They raise KeyboardInterrupt
    with the signal's number. A signal that is ignored, such as SIGHUP under nohup, stays ignored. Python drops what is
    raised in a finalizer or a callback of the garbage collector; a stop that came then, Ctrl-C too, is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            number = dropped.exc_value.args[0] if dropped.exc_value.args else signal.SIGINT
            # From a thread, after a moment: sent from here, it would be raised within this hook and be dropped as well.
            threading.Timer(SEND_AGAIN, os.kill, (os.getpid(), number)).start()
        else:
            hook(dropped)

    hook = sys.unraisablehook
    sys.unraisablehook = send_again
    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def report_stop(interrupt: KeyboardInterrupt) -> int:
    """Print that a command was stopped, and return its exit status: 128 plus the signal's number."""
    print("stopped; run the same command again to resume", file=sys.stderr)
    return 128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT)
