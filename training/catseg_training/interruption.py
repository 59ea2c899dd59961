"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import ClassVar, TypeVar

import psutil
import torch
from accelerate import Accelerator


SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of a worker, after the process that it works for.
SECONDS_BETWEEN_LOOKS = 1.0

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal came while something was waited for."""


class TerminationNotice:
    """
    Notes SIGTERM and Ctrl-C while its `with` block runs, instead of dying of them, so that a checkpoint can be written
    first. A second Ctrl-C interrupts at once.

    Args:
        accelerator (`Accelerator`): Its processes agree on whether to stop, since they may be told at different times.

    Attributes:
        received (`int`): The signal, 0 before there is one.
    """

    _active: ClassVar["TerminationNotice | None"] = None

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0
        self._previous = {}
        self._raises = False

    def __enter__(self) -> "TerminationNotice":
        TerminationNotice._active = self
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception):
        TerminationNotice._active = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object):
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = number
        if self._raises:
            raise Stopped

    def is_due(self) -> bool:
        """Whether any process has been told to stop. All processes must ask together, and get the same answer."""
        return self._in_any_process(self.received)

    def wait_for(self, function: Callable[[], Result]) -> Result:
        """
        What the function returns, once it has returned in all processes. All must call this together.

        Raises:
            Stopped: In all processes, if any was told to stop before, or while it waited in a block of
                [`~TerminationNotice.interrupting`].
        """
        result, told = None, self.received
        if not told:
            try:
                result = function()
            except Stopped:
                told = self.received
        if self._in_any_process(told):
            raise Stopped
        return result

    def _in_any_process(self, told: int) -> bool:
        if self.accelerator.num_processes > 1:
            told = int(self.accelerator.gather(torch.tensor([told], device=self.accelerator.device)).max())
        self.received = max(self.received, told)
        return told > 0

    @classmethod
    @contextmanager
    def interrupting(cls) -> Iterator[None]:
        """A block that may wait for ever: if a signal is noted before or in it, it ends with [`Stopped`]."""
        notice = cls._active
        if notice is None:
            yield
            return
        notice._raises = True
        try:
            if notice.received:
                raise Stopped
            yield
        finally:
            notice._raises = False

    @property
    def exit_status(self) -> int:
        """What shells expect of a process that ended of the signal: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + self.received


def shield_worker(worker_id: int):
    """For a loader's workers: a signal to all processes must not take the images of the last step away. Workers end
    when the process that they work for says so, or has ended itself, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent_process().pid,), daemon=True).start()


def _end_with(pid: int):
    # A worker that waits to hand over an image would never notice that nobody takes it any more.
    while not _has_ended(pid):
        received = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == pid:
            break
    os._exit(0)


def _has_ended(pid: int) -> bool:
    """Of a process that need not be the parent, which a fork server may be."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except OSError:  # too many open files, say
        return False
