"""Worker processes end with the process that they work for, however that one ends."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import numpy as np
import psutil
import pytest
from torch.utils.data import Dataset

from catseg_training.inference import ALONE, load_batches


class LargeImages(Dataset):
    """Larger than a pipe, so that workers stand there with an image that they cannot hand over."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict:
        return {"image": np.zeros((300, 400, 3), np.uint8)}


def load(workers: Connection):
    """Tells the ids of its workers, and then does nothing."""
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_is_left(number):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    process = context.Process(target=load, args=(sender,))
    process.start()
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
