"""What signals do: workers outlive them and end with the process that they work for, which no wait keeps from them."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
import torch.distributed
from torch.utils.data import Dataset

from catseg_training import interruption
from catseg_training.inference import ALONE, load_batches
from catseg_training.interruption import Stopped, TerminationNotice
from conftest import START_METHODS


class LargeImages(Dataset):
    """Larger than a pipe, so that workers stand there with an image that they cannot hand over."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict:
        return {"image": np.zeros((300, 400, 3), np.uint8)}


def load(start_method: str, workers: Connection):
    """Tells the ids of its workers, and then does nothing."""
    multiprocessing.set_start_method(start_method, force=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # runners of tests may ignore them
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    batches = load_batches(LargeImages(), ALONE, batch_size=1, num_workers=2)
    next(batches)
    workers.send([worker.pid for worker in multiprocessing.active_children()])
    signal.pause()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="workers cannot wait for signals here")
@pytest.mark.skipif(sys.platform == "darwin", reason="processes are not forked there")
@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_is_left(number, method):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    process = context.Process(target=load, args=(method, sender))
    process.start()
    sender.close()
    workers = [psutil.Process(pid) for pid in receiver.recv()]
    assert len(workers) == 2
    os.kill(process.pid, number)
    process.join()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [worker for worker in workers if is_alive(worker)]
    for worker in left:
        worker.kill()
    assert not left


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="workers cannot wait for signals here")
def test_a_worker_of_a_fork_server(monkeypatch):
    """Whose parent is not the process that it works for: it ends when that one says so, and no earlier."""
    told = iter([None, SimpleNamespace(si_pid=1), None, SimpleNamespace(si_pid=os.getpid())])
    ended = []
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(signal, "sigtimedwait", lambda *arguments: next(told))
    monkeypatch.setattr(os, "_exit", ended.append)
    interruption._end_with(os.getpid())
    assert ended == [0] and next(told, "all heard") == "all heard"


def test_ended_processes():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not interruption._has_ended(process.pid)
    process.communicate(b"\n")
    assert interruption._has_ended(process.pid)
    assert not interruption._has_ended(os.getpid())


@pytest.mark.parametrize(
    ("error", "has_ended"), [(psutil.NoSuchProcess(1), True), (OSError(errno.EMFILE, "Too many open files"), False)]
)
def test_processes_that_cannot_be_looked_at(error, has_ended, monkeypatch):
    monkeypatch.setattr(psutil.Process, "status", Mock(side_effect=error))
    assert interruption._has_ended(os.getpid()) == has_ended


def told_by(number: int):
    """Waits for ever, or so it would if a signal did not come."""
    with TerminationNotice.interrupting():
        os.kill(os.getpid(), number)
        time.sleep(600)


ALONE_ACCELERATOR = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_wait_outlasts_a_signal(number):
    with TerminationNotice(ALONE_ACCELERATOR) as notice:
        assert notice.wait_for(lambda: "ready") == "ready"
        with pytest.raises(Stopped):
            notice.wait_for(lambda: told_by(number))
        assert notice.is_due() and notice.exit_status == 128 + number
        with pytest.raises(Stopped):  # and none begins
            notice.wait_for(lambda: pytest.fail("a wait was begun"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_ready_is_not_dropped(number):
    """A signal outside of what may last for ever is noted, and no other wait begins."""
    with TerminationNotice(ALONE_ACCELERATOR) as notice:
        assert notice.wait_for(lambda: os.kill(os.getpid(), number) or "ready") == "ready"
        with pytest.raises(Stopped), TerminationNotice.interrupting():
            pytest.fail("a wait was begun")
        with pytest.raises(Stopped):
            notice.wait_for(lambda: pytest.fail("a wait was begun"))


def share(rank: int, store: str, stopped: Connection):
    """One of two processes, of which the second alone is told to stop, while it waits."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        tensors = [torch.empty_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(tensors, tensor)
        return torch.cat(tensors)

    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    with TerminationNotice(accelerator) as notice:
        assert notice.wait_for(lambda: "ready") == "ready"
        try:
            notice.wait_for(lambda: told_by(signal.SIGTERM) if rank else "ready")
        except Stopped:
            stopped.send(notice.exit_status)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_processes_stop_together(tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=share, args=(rank, str(tmp_path / "store"), sender)) for rank in range(2)]
    for process in processes:
        process.start()
    sender.close()
    assert [receiver.recv(), receiver.recv()] == [143, 143]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
