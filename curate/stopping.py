"""Stopping: Ctrl-C, SIGTERM and SIGHUP end a command in order, soon, and with one line that says how to go on.

The first of them raises `Stopped` wherever the program is, so that temporary files go and locks are freed, or, in
training, at the end of the step, whose state is saved; more of them change nothing. What a command has written is whole
or absent at any moment, and nothing has to be brought to its end: one that does not get out within seconds, because a
disk or a network hangs, is cut off as by a kill.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Stopped", "after", "caught", "code", "deferred", "instead", "keep", "kept", "line", "listen"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 3.0  # seconds for getting out,
_LONG_GRACE = 10.0  # and for ending a step and saving what it came to

_caught: list[signal.Signals] = []
_deferring = False
_kept = "what is finished is kept"


class Stopped(BaseException):
    """A signal has come. It is no Exception: no handler of errors is to take it for one."""


def listen() -> None:
    """Raise `Stopped` in the main thread, from which this is called, when a signal comes.

    One that is ignored stays so: a shell's `&` and `nohup` want it.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Go on listening while something is begun that takes SIGTERM for itself and makes a SystemExit of it, as Ray."""
    listening = signal.getsignal(signal.SIGTERM) is _stop
    try:
        yield
    except SystemExit:
        if listening:
            _stop(signal.SIGTERM, None)
        raise
    finally:
        if listening:
            signal.signal(signal.SIGTERM, _stop)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only note a signal in the block, which asks `caught` now and then, saves what matters and raises `Stopped`.

    It has ten seconds for that. `Stopped` is raised at the block's end where it has not been.
    """
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    if _caught:
        raise Stopped


@contextlib.contextmanager
def instead(act: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C does `act` and stops nothing; SIGTERM and SIGHUP stop as ever. In the main thread."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def after(leave: Callable[[], object]) -> Iterator[None]:
    """SIGTERM and SIGHUP `leave` what is inside, and stop after it: an event loop swallows what is raised in it, and
    DuckDB goes on for a while."""

    def act(number: int, frame: FrameType | None) -> None:
        if _first(number):
            leave()

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is _stop]
    for number in numbers:
        signal.signal(number, act)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, _stop)
        if _caught:
            raise Stopped


def caught() -> bool:
    """Whether a signal has come. What it raised may have become an error of DuckDB's or Arrow's on its way."""
    return bool(_caught)


def keep(words: str) -> None:
    """What to say of what is kept: `step 38 of 200 is saved`."""
    global _kept
    _kept = words


def line() -> str:
    """What to say of it."""
    return f"stopped by {_caught[0].name}; {_kept}, and the same command goes on"


def code() -> int:
    """What to leave with: 128 and the signal's number, as shells have it."""
    return 128 + _caught[0]


def _stop(number: int, frame: FrameType | None) -> None:
    if _first(number) and not _deferring:
        raise Stopped


def _first(number: int) -> bool:
    """Whether a signal is the first one; from it on time runs."""
    if _caught:
        return False
    _caught.append(signal.Signals(number))
    timer = threading.Timer(_LONG_GRACE if _deferring else _GRACE, _cut_off)
    timer.daemon = True
    timer.start()
    return True


def _cut_off() -> None:
    os.write(2, f"curate: {line()}\n".encode())
    os._exit(code())
