"""What a Ray cluster is asked before a job: whether it answers, and which actors find room."""

import math
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError, first_line


READ_CPUS = 0.25  # of a task that reads or writes
RESUME_CPUS = 1.0  # of the actor by which Ray leaves out the rows that a checkpoint has
SECONDS = 10.0  # that a cluster may take to answer
SECONDS_TO_JOIN = 60.0
_LEAST_CPUS = 0.01
_ROUNDING = 1e-9


def check_answers(address: str):
    """
    Tries to join a Ray cluster from another process, since to try what is none takes minutes and ends the process.

    Raises:
        UserError: If it is no address, nothing answers there within a few seconds, or no Ray within a minute.
    """
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not port or not host:
        raise UserError(
            f"The Ray address is {address!r}, but HOST:PORT (as `ray start --head` prints it) or ray://HOST:PORT is "
            "needed."
        )
    remedy = "start a cluster there with `ray start --head`, or leave the address out, to use this machine alone."
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        raise UserError(
            f"Nothing answers at the Ray address {address!r} within {SECONDS:g} s ({first_line(error)}): {remedy}"
        ) from error
    command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)", address]
    try:
        is_ray = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_JOIN).returncode == 0
    except subprocess.TimeoutExpired:
        is_ray = False
    if not is_ray:
        raise UserError(
            f"What answers at {address!r} is no Ray cluster of this version that can be joined within "
            f"{SECONDS_TO_JOIN:g} s: {remedy}"
        )


@dataclass(frozen=True)
class Actors:
    """
    The processes that segment, each with a model of its own.

    Args:
        number (`int`): How many there are.
        num_cpus (`float`): CPUs that each reserves, at least 0.01; it takes as many threads, at least one.
        num_gpus (`float`): GPUs that each reserves; a share such as 0.5 if several fit on one.
    """

    number: int
    num_cpus: float
    num_gpus: float = 0.0

    @property
    def threads(self) -> int:
        """CPU threads of each."""
        return max(1, int(self.num_cpus))

    @property
    def device(self) -> str | None:
        """Where the model runs: Ray shows a process the GPUs alone that are for it."""
        return None if self.num_gpus else "cpu"


def choose_actors(
    nodes: Sequence[Mapping[str, Any]],
    number: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    room: float = READ_CPUS,
) -> Actors:
    """
    The actors for the cluster, which leave CPUs for reading on at least one node.

    Args:
        nodes (`list[dict]`): As `ray.nodes()` describes them.
        number (`int`, *optional*): How many; by default as many as the GPUs have room for, or without GPUs one for
            each CPU.
        num_cpus (`float`, *optional*): CPUs of each; by default what leaves some for reading, at most 1.
        num_gpus (`float`, *optional*): GPUs of each, a share below 1 or a whole number; by default 1 if the cluster
            has any, else 0.
        room (`float`): CPUs that stay free for all else.

    Raises:
        UserError: If they reserve all CPUs, so that they would wait for data for ever, or GPUs that are not there.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [own.get("GPU", 0.0) for own in resources]
    if num_gpus is None:
        num_gpus = 1.0 if any(gpus) else 0.0
    if not num_gpus >= 0 or (num_gpus > 1 and num_gpus != int(num_gpus)):
        raise UserError(
            f"Each actor is to have {num_gpus:g} GPUs, but 0, a share below 1 or a whole number is needed "
            "(`num_gpus`, --actor_gpus)."
        )
    places = [int(own / num_gpus + _ROUNDING) if num_gpus else math.inf for own in gpus]
    cpus = [own.get("CPU", 0.0) for own in resources]
    if not any(places):
        raise UserError(
            f"Each actor is to have {num_gpus:g} GPUs, but no node of the Ray cluster has more than "
            f"{max(gpus, default=0.0):g}: give fewer (`num_gpus`, --actor_gpus)."
        )
    most_actors = _most_actors(cpus, places, _LEAST_CPUS, room)
    if not most_actors:
        raise UserError(
            f"No node of the Ray cluster has more than {room:g} CPUs, which are to stay free beside the actors: use "
            "larger nodes, or with `segment` a smaller `room`."
        )
    if number is None:
        number = min(sum(places) if num_gpus else max(1, int(sum(cpus))), most_actors)
    if number < 1:
        raise UserError(f"The number of actors is {number}, but at least 1 is needed.")
    if num_gpus and number > sum(places):
        raise UserError(
            f"There are to be {number} actors with {num_gpus:g} GPUs each, but the Ray cluster's nodes have room for "
            f"{sum(places)}: give at most {sum(places)} (`num_actors`, --actors)."
        )
    if number > most_actors:
        raise UserError(
            f"There are to be {number} actors, but the Ray cluster has {sum(cpus):g} CPUs, which are too few for so "
            f"many: give at most {most_actors} (`num_actors`, --actors)."
        )
    most = _most_cpus(cpus, places, number, room)
    if num_cpus is None:
        num_cpus = min(1.0, most)
    if not num_cpus > 0:
        raise UserError(f"`num_cpus` is {num_cpus:g}, but at most {most:g} and more than 0 are needed for each actor.")
    if num_cpus > most:
        raise UserError(
            f"{number} actor{'s' * (number != 1)} with {num_cpus:g} CPUs each leave too few of the Ray cluster's "
            f"{sum(cpus):g} CPUs for reading, so that they could wait for images for ever: give each at most "
            f"{most:g} CPUs (`num_cpus`, --actor_cpus)."
        )
    return Actors(number, num_cpus, num_gpus)


def _most_actors(cpus: Sequence[float], places: Sequence[float], each: float, room: float) -> int:
    """How many actors with so many CPUs each there can be, so that the room is left on one node however they are
    spread. `places` are how many each node has GPUs for."""
    fitting = sum(min(int(own / each + _ROUNDING), most) for own, most in zip(cpus, places, strict=True))
    # By node, how many it takes until less than the room is left there.
    filling = [
        (int((own - room) / each + _ROUNDING) + 1, most) for own, most in zip(cpus, places, strict=True) if own >= room
    ]
    if any(count > most for count, most in filling):
        return fitting
    return min(fitting, max(0, sum(count for count, _ in filling) - 1))


def _most_cpus(cpus: Sequence[float], places: Sequence[float], number: int, room: float) -> float:
    """The most that each of so many actors can reserve, of two decimals."""
    shared = {*cpus, *(own - room for own in cpus)}
    candidates = {math.floor(100 * own / count + _ROUNDING) / 100 for own in shared for count in range(1, number + 1)}
    return max(
        (each for each in candidates if each >= _LEAST_CPUS and _most_actors(cpus, places, each, room) >= number),
        default=0.0,
    )
