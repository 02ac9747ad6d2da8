"""Ctrl-C between two steps, not within one."""

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """While it is entered, the first Ctrl-C only sets ``asked``; the second one interrupts as ever.

    A step that is cut in half would leave weights that belong to no step. Outside the main thread, where
    Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupts":
        self.in_charge = threading.current_thread() is threading.main_thread()
        if self.in_charge:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.in_charge:
            signal.signal(signal.SIGINT, self.before or signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
