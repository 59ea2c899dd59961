"""Training across machines: two network namespaces, joined by a cable and a folder that both see."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from catseg_testing.tiny_training import QUICK, run_train, save_checkpoint, weights, write_pairs
from conftest import ROOT


pytestmark = pytest.mark.slow

ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 29517
SECONDS_TO_END = 60
# train.py, in which the second machine stands still before its sixth step, and is missed sooner.
STANDING_STILL = """
import os, sys, time
import train
from catseg_training import heartbeat, loop

heartbeat.SECONDS_OF_SILENCE = 10.0
take_step, num_steps = loop.training_step, 0


def step(*arguments):
    global num_steps
    num_steps += 1
    if os.environ["RANK"] == "1" and num_steps == 6:
        time.sleep(600)
    return take_step(*arguments)


loop.training_step = step
sys.exit(train.main())
"""


class Machines:
    """Two network namespaces with a cable between them."""

    def __init__(self):
        self.names = [f"catseg{os.getpid()}{letter}" for letter in "ab"]
        self._processes = []

    def __enter__(self) -> "Machines":
        first, second = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        return self

    def __exit__(self, *exception):
        for name in self.names:
            self.kill(name)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        for process in self._processes:
            process.wait()
            process.stdout.close()

    def run(self, launchers: list[list[str]], script: Path, arguments: list) -> list[subprocess.Popen]:
        """Starts a script on both machines, each with its launcher."""
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        started = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", *launcher, str(script), *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for name, launcher in zip(self.names, launchers, strict=True)
        ]
        self._processes += started
        return started

    def kill(self, name: str):
        """Everything on a machine at once, as if it had lost its power."""
        if pids := self.pids(name):
            subprocess.run(["kill", "-KILL", *pids], capture_output=True)

    def pids(self, name: str) -> list[str]:
        """Of what runs on a machine."""
        return subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()


def ip(*arguments: str):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines():
    try:
        machines = Machines().__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs two network namespaces, which cannot be made here: {getattr(error, 'stderr', error)}")
    try:
        yield machines
    finally:
        machines.__exit__()


def accelerate_launchers() -> list[list[str]]:
    return [
        [
            *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"),
            *("--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0], "--main_process_port", str(PORT)),
        ]
        for rank in range(2)
    ]


def torchrun_launchers() -> list[list[str]]:
    return [
        [
            *("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"),
            *("--rdzv_id", "job", "--rdzv_endpoint", f"{ADDRESSES[0]}:{PORT}", "--local_addr", address),
            *("--rdzv_conf", f"is_host={address == ADDRESSES[0]}"),
        ]
        for address in ADDRESSES
    ]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("machines")
    arguments = [
        "--model_name_or_path",
        save_checkpoint(folder / "start"),
        "--dataset_name",
        write_pairs(folder / "data"),
    ]
    return [*arguments, *QUICK, "--max_train_steps", 10, "--checkpointing_steps", 2, "--skip_evaluation"]


@pytest.fixture(scope="module")
def complete(machines, command, tmp_path_factory) -> Path:
    """What ten steps on two machines give that nobody disturbs."""
    folder = tmp_path_factory.mktemp("complete") / "out"
    arguments = [*command, "--per_device_train_batch_size", 1, "--output_dir", folder]
    check_both(machines.run(accelerate_launchers(), ROOT / "training" / "train.py", arguments))
    return folder


def check_both(processes: list[subprocess.Popen]):
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def test_ten_steps_equal_one_process(complete, command, tmp_path):
    arguments = [*command, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out"]
    assert run_train(*arguments) == 0
    tensors, others = (load_file(folder / "model.safetensors") for folder in (complete, tmp_path / "out"))
    start = load_file(Path(command[1]) / "model.safetensors")
    assert max(float((start[name] - tensors[name]).abs().max()) for name in tensors) > 1e-3
    assert max(float((others[name] - tensors[name]).abs().max()) for name in tensors) < 1e-5
    assert checkpoints(complete) == {f"checkpoint-{step}" for step in (2, 4, 6, 8, 10)}


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


def wait_for(checkpoint: Path, processes: list[subprocess.Popen]):
    while not checkpoint.exists():
        if ended := [process for process in processes if process.poll() is not None]:
            pytest.fail(ended[0].communicate()[0])
        time.sleep(0.1)


def ends_of(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=SECONDS_TO_END)[0] for process in processes]
    assert all(process.returncode != 0 for process in processes), outputs
    return outputs


def test_machine_that_is_gone(machines, complete, command, tmp_path):
    """Killed, then without its cable: each time the job ends on all that is left, and in the end it comes to the same
    bits as if nothing had been."""
    folder, script = tmp_path / "out", tmp_path / "standing_still.py"
    script.write_text(STANDING_STILL)
    arguments = [*command, "--per_device_train_batch_size", 1, "--output_dir", folder]
    arguments += ["--resume_from_checkpoint", "latest"]

    first, second = machines.run(torchrun_launchers(), script, arguments)
    wait_for(folder / "checkpoint-4", [first, second])
    machines.kill(machines.names[1])
    ends_of([first])
    assert checkpoints(folder) == {"checkpoint-2", "checkpoint-4"}

    first, second = machines.run(torchrun_launchers(), script, arguments)
    wait_for(folder / "checkpoint-8", [first, second])
    ip("-n", machines.names[1], "link", "set", "cable", "down")
    (output,) = ends_of([first])
    assert "Process 1 has not been heard of by process 0 for 10 seconds: the job ends" in output
    # Only torchrun itself is left on the other one, whose own patience with its store is a minute.
    deadline = time.monotonic() + SECONDS_TO_END
    while len(machines.pids(machines.names[1])) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    machines.kill(machines.names[1])
    assert "The machine that the processes meet at has not been heard of by process 1" in second.communicate()[0]
    assert checkpoints(folder) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}

    ip("-n", machines.names[1], "link", "set", "cable", "up")
    check_both(machines.run(torchrun_launchers(), ROOT / "training" / "train.py", arguments))
    assert weights(folder) == weights(complete)
