"""Ctrl-C and SIGTERM, answered between two steps of long work, so that the work can be saved first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sodeploy import terminal


@dataclass
class StopRequest:
    """The first signal that asked for the end of the work.

    Attributes:
        number: SIGINT or SIGTERM; 0 while no signal came.
    """

    number: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Keep SIGINT and SIGTERM as requests until the block ends; the work in it looks at them and ends itself.

    A second Ctrl-C ends the work at once, with KeyboardInterrupt. A process that leaves SIGTERM to the system, as one
    that only calls the library does, dies by the signal when the block has ended. Outside the main thread, where Python
    takes no signals, no request ever comes.
    """
    request = StopRequest()

    def keep(number: int, _: FrameType | None) -> None:
        if request.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request.number:
            request.number = number
            with contextlib.suppress(RuntimeError):  # the signal came in the middle of another line
                terminal.note("stopping after this step; Ctrl-C ends at once")

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heard = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, keep) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.number == signal.SIGTERM and before[signal.SIGTERM] == signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)
