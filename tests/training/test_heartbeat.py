"""What a process does when others on other machines are silent."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed

from catseg_hf.errors import UserError
from catseg_training.heartbeat import Heartbeat, watch_other_machines
from catseg_training.processes import build_accelerator


def store_at(port: int, is_master: bool = False) -> torch.distributed.TCPStore:
    options = {"is_master": is_master, "wait_for_workers": False, "timeout": timedelta(seconds=5)}
    return torch.distributed.TCPStore("127.0.0.1", port, **options)


@pytest.fixture
def server():
    return store_at(0, is_master=True)


@pytest.fixture
def heartbeats(server):
    """Two processes' heartbeats in this one, which are started by the test."""
    made = [Heartbeat(store_at(server.port), rank, 2, silence=0.5, interval=0.05) for rank in range(2)]
    yield made
    for heartbeat in made:
        heartbeat.stop()


def wait_until(is_so, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def be_a_process(rank: int, port: int, errors: Path, begun, done):
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    heartbeat = Heartbeat(store_at(port), rank, 3, silence=1.0, interval=0.05)
    heartbeat.start()
    begun.wait()
    done.wait()
    heartbeat.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_process_that_is_gone_ends_the_others(server, tmp_path):
    """Killed, it ends the second; the third has said that it is done, and is missed by nobody."""
    context = multiprocessing.get_context("fork")
    begun, done = context.Barrier(4), [context.Event() for _ in range(3)]
    processes = [
        context.Process(target=be_a_process, args=(rank, server.port, tmp_path / str(rank), begun, done[rank]))
        for rank in range(3)
    ]
    try:
        for process in processes:
            process.start()
        begun.wait(60)
        done[2].set()
        processes[2].join(60)
        processes[0].kill()
        processes[1].join(60)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL, 1, 0]
    finally:
        for process in processes:
            process.kill()
    message = "Process 0 has not been heard of by process 1 for 1 seconds: the job ends."
    assert message in (tmp_path / "1").read_text()


def test_silence(heartbeats):
    first, second = heartbeats
    first._watch = second._watch = lambda: None  # which would end this process
    first.start()
    wait_until(lambda: first.silent() == 1)
    second.start()
    wait_until(lambda: first.silent() is None and second.silent() is None)
    second.stop()
    time.sleep(2 * first.silence)
    assert first.silent() is None


def test_store_that_is_gone():
    server = store_at(0, is_master=True)
    heartbeat = Heartbeat(store_at(server.port), 0, 1, silence=0.5, interval=0.2)
    heartbeat._watch = lambda: None
    begun = heartbeat._heard[0]
    heartbeat.start()
    try:
        wait_until(lambda: heartbeat._heard[0] > begun)
        assert heartbeat.silent() is None
        del server
        wait_until(lambda: heartbeat.silent() == 0)
    finally:
        heartbeat.stop()


@pytest.mark.parametrize("world_size, local_world_size, is_watched", [(2, 2, False), (1, 1, False), (2, 1, True)])
def test_only_several_machines_are_watched(world_size, local_world_size, is_watched, server, monkeypatch):
    started = []
    monkeypatch.setattr(Heartbeat, "start", lambda heartbeat: started.append(heartbeat))
    monkeypatch.setattr("atexit.register", lambda function: None)
    settings = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": local_world_size, "RANK": 0}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    watch_other_machines()
    assert [heartbeat.rank for heartbeat in started] == [0] * is_watched


def test_a_process_that_was_started_again_is_heard_anew(server, monkeypatch):
    """A worker that ended by an exception has said that it is done to the store that torchrun keeps."""
    started = []
    monkeypatch.setattr(Heartbeat, "start", lambda heartbeat: started.append(heartbeat))
    monkeypatch.setattr("atexit.register", lambda function: None)
    settings = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "RANK": 1}
    for name, value in {**settings, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port}.items():
        monkeypatch.setenv(name, str(value))
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        watch_other_machines()
    started[0].stop()
    assert started[0].store.add("1", 0) > 0
    assert started[1].store.add("1", 0) == 0


def test_addresses_are_checked_before_anything_is_waited_for(monkeypatch):
    """See tests/utils/test_addresses.py for what is refused."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "192.0.2.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"):
        build_accelerator()
