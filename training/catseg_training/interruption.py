"""SIGTERM, which schedulers send before they take a machine away."""

import os
import signal
import threading

import torch
from accelerate import Accelerator


EXIT_STATUS = 128 + signal.SIGTERM


class TerminationNotice:
    """
    Notes SIGTERM while its `with` block runs, instead of dying of it, so that a checkpoint can be written first.

    Args:
        accelerator (`Accelerator`): Its processes agree on whether to stop, since they may be told at different times.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = False

    def __enter__(self) -> "TerminationNotice":
        # Python lets only the main thread set handlers.
        self._is_watching = threading.current_thread() is threading.main_thread()
        if self._is_watching:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception):
        if self._is_watching:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum: int, frame: object):
        self.received = True

    def is_due(self) -> bool:
        """Whether any process has been told to stop. All processes must ask together, and get the same answer."""
        if self.accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor(int(self.received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum"))


def shield_worker(worker_id: int):
    """For a loader's workers: a scheduler's SIGTERM to all processes must not take the pictures of the last step away.
    Only from the process that they work for do they take it."""
    if hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
