"""Ctrl-C that is not lost: libraries that are just being imported may swallow the exception, but not the flag."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import NoReturn

_requested = threading.Event()


def listen() -> None:
    """Let Ctrl-C and a polite kill raise KeyboardInterrupt, and be remembered."""
    _requested.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def requested() -> bool:
    """Whether an interrupt was asked for, even if it got lost."""
    return _requested.is_set()


def check() -> None:
    """Raise KeyboardInterrupt if one was asked for and got lost."""
    if requested():
        raise KeyboardInterrupt


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    _requested.set()
    raise KeyboardInterrupt
