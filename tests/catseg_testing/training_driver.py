"""Runs scripts in children that are forked, so that the libraries are loaded once: see `TrainingDriver`.

Takes the module search path as arguments, then one job after another, a line of JSON each, from the standard input.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time


sys.path[:] = sys.argv[1:]
import matplotlib.pyplot  # noqa: E402, F401  (which train.py loads when it draws)

import evaluate_benchmarks  # noqa: E402
import train  # noqa: E402
from catseg_hf import cli  # noqa: E402


SCRIPTS = {"train": train, "evaluate_benchmarks": evaluate_benchmarks, "catseg-hf": cli}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}


def is_change(event: str, arguments: tuple) -> bool:
    opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    return event in CHANGES or bool(opens_to_write)


def child(job: dict, rank: int, port: int, report: int, output: int, errors: int):
    """One process of a run; never returns."""
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    world_size = job.get("world_size", 1)
    if world_size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    count = 0

    def hook(event: str, arguments: tuple):
        nonlocal count
        if is_change(event, arguments) and job["output_dir"] in str(arguments[0]):
            count += 1
            if count == job.get("killed_at"):
                if "killed_after" in job:
                    os.write(report, f"{count}\n".encode())
                else:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    status = 70
    try:
        status = SCRIPTS[job.get("script", "train")].main(job["arguments"])
        sys.stdout.flush()
    finally:
        os.write(report, f"{count}\n".encode())
        os._exit(status)


def run(job: dict) -> dict:
    option = "--output" if job.get("script") == "catseg-hf" else "--output_dir"
    job["output_dir"] = job["arguments"][job["arguments"].index(option) + 1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader, report = os.pipe()
    output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    start = time.monotonic()
    children = []
    for rank in range(job.get("world_size", 1)):
        if (process := os.fork()) == 0:
            child(job, rank, port, report, output.fileno(), errors.fileno())
        children.append(process)
    os.close(report)
    counts = os.fdopen(reader)
    changes = []
    if "killed_after" in job and (line := counts.readline()):
        changes.append(int(line))
        # Children are waited for afterwards only, so that no other process can be hit.
        time.sleep(job["killed_after"])
        for process in children:
            if job.get("terminated"):
                os.killpg(process, signal.SIGTERM)
            else:
                os.kill(process, signal.SIGKILL)
    status = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
    with counts:
        changes += [int(line) for line in counts]
    printed = {}
    for name, file in (("stdout", output), ("stderr", errors)):
        file.seek(0)
        printed[name] = file.read().decode()
    return {"status": status, "seconds": time.monotonic() - start, "changes": max(changes, default=0), **printed}


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
