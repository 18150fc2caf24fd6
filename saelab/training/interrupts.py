"""Interrupts and requests to terminate, held back until a step is done."""

import signal
import threading
from typing import Any


class HeldSignals:
    """Holds back Ctrl-C (Jupyter's stop button) and SIGTERM (a cluster's scheduler), which would tear a step in two.

    Only the first of each is held: whoever asks again is in a hurry. Use it as a context; `asked` says what came.
    """

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        self.asked.clear()
        self._before.clear()
        if threading.current_thread() is threading.main_thread():  # no other may, and none arrives in another
            for number in (signal.SIGINT, signal.SIGTERM):
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                self._before[number] = signal.signal(number, self._hold_back) or default
        return self

    def _hold_back(self, number: int, frame: object) -> None:
        self.asked.add(number)
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
