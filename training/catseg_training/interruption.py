"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import multiprocessing
import os
import signal
import threading

import torch
from accelerate import Accelerator


SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of a worker, after the process that it works for.
SECONDS_BETWEEN_LOOKS = 1.0


class TerminationNotice:
    """
    Notes SIGTERM and Ctrl-C while its `with` block runs, instead of dying of them, so that a checkpoint can be written
    first. A second Ctrl-C interrupts at once.

    Args:
        accelerator (`Accelerator`): Its processes agree on whether to stop, since they may be told at different times.

    Attributes:
        received (`int`): The signal, 0 before there is one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0
        self._previous = {}

    def __enter__(self) -> "TerminationNotice":
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object):
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = number

    def is_due(self) -> bool:
        """Whether any process has been told to stop. All processes must ask together, and get the same answer."""
        if self.accelerator.num_processes > 1:
            received = torch.tensor([self.received], device=self.accelerator.device)
            self.received = int(self.accelerator.gather(received).max())
        return self.received > 0

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
        parent = multiprocessing.parent_process().pid
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int):
    # A worker that waits to hand over an image would never notice that nobody takes it any more.
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
