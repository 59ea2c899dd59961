"""Processes that share a job, as `torchrun` and `accelerate launch` start them, on one machine or several."""

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from transformers.utils import logging

from ..errors import UserError


Value = TypeVar("Value")

# One with much to do for a batch may be long behind the others at the end; and all wait for the first while it writes.
TIMEOUT = timedelta(hours=3)
_MORE_THAN_ANY = 2**48
# Set by torchrun, and by the launchers of MPI.
_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


class Processes:
    """
    One of the processes that share a job, each of which calls the same methods in the same order.

    Args:
        rank (`int`): Which one it is.
        size (`int`): How many there are.
        store (`torch.distributed.Store`, *optional*): Where they count together, if there are several.

    Attributes:
        is_first (`bool`): Whether it is the one that speaks for all.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: "torch.distributed.Store | None" = None):
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self._store = store
        self._round = self._num_done = 0

    def each(self, function: Callable[[], Value]) -> Value:
        """What the function returns here, once it has returned in all processes. A `UserError` in one of them is
        raised in all, and there is nothing left to `take`."""
        self._round, self._num_done = self._round + 1, 0
        value = failure = None
        try:
            value = function()
        except UserError as error:
            failure = error
            if self.size > 1:
                self._add("taken", _MORE_THAN_ANY)
        if failures := [failure for failure in self.gather(failure) if failure is not None]:
            raise failures[0]
        return value

    def first(self, function: Callable[[], Value]) -> Value:
        """What the function returns in the first process, the only one that calls it; a `UserError` is raised in
        all."""
        values = [self.each(lambda: function() if self.is_first else None)]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in each of them."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def take(self, items: Sequence[Value]) -> Iterator[Value]:
        """In a function that `each` calls: those of the items, the same in all processes, that no other one takes.
        Each takes the next one when it comes to it."""
        if self.size == 1:
            yield from items
            return
        while (place := self._add("taken", 1) - 1) < len(items):
            yield items[place]

    def add_done(self, count: int) -> int:
        """In a function that `each` calls: how much all processes have done there, with these `count` of this one."""
        if self.size > 1:
            return self._add("done", count)
        self._num_done += count
        return self._num_done

    def _add(self, name: str, count: int) -> int:
        return self._store.add(f"catseg_hf/{self._round}/{name}", count)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes that this one was started with by a launcher, or this one alone."""
    if not _is_shared():
        tell_if_alone()
        yield Processes()
        return
    check_addresses()
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    if rank > 0:
        logging.disable_progress_bar()
    try:
        yield Processes(rank, size, store)
    finally:
        torch.distributed.destroy_process_group()


def tell_if_alone():
    """Says so if `accelerate launch` was asked for several processes and has started one, as it does on CPUs."""
    # The one has an address to meet others at, but no rank among them.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and not _RANKS & os.environ.keys():
        if os.environ["MASTER_ADDR"] not in ("127.0.0.1", "localhost"):
            raise UserError(
                f"`accelerate launch` was to bring several machines together at {os.environ['MASTER_ADDR']}, but on "
                "CPUs it starts one process on each that knows nothing of the others, and all of them would write to "
                "the same output. Add --multi_gpu, which brings processes on CPUs together, too, or use `torchrun`."
            )
        print(
            "This process works alone: on CPUs `accelerate launch` starts only one, whatever its --num_processes. "
            "`torchrun --nproc_per_node N` in its place starts N.",
            file=sys.stderr,
        )


def check_addresses():
    """
    Looks at the addresses by which processes on several machines are to find each other over gloo.

    Raises:
        UserError: If one of them leads back to the machine that it is looked up on, as the host name does where
            `/etc/hosts` says so; gloo would wait for hours.
    """
    world_size, meeting_place = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("MASTER_ADDR")
    if meeting_place is None or world_size == int(os.environ.get("LOCAL_WORLD_SIZE", world_size)):
        return
    if _is_loopback(meeting_place):
        # Several launchers on one machine meet there as well.
        if os.environ.get("GROUP_RANK", "0") != "0" and not _is_open(meeting_place, int(os.environ["MASTER_PORT"])):
            raise UserError(
                f"The processes are to meet on the first machine, which calls itself {meeting_place!r}, but on this "
                "machine that name is its own: start `torchrun` on the first machine with --local_addr and the "
                "address that others reach it at."
            )
        return
    name = socket.gethostname()
    if "GLOO_SOCKET_IFNAME" not in os.environ and _is_loopback(name):
        interfaces = [interface for _, interface in socket.if_nameindex() if interface != "lo"]
        raise UserError(
            f"This machine's name {name!r} leads back to itself (see /etc/hosts), so that the processes on "
            "the other machines would not find it: set GLOO_SOCKET_IFNAME on every machine to the network interface "
            f"that the others reach it by ({', '.join(interfaces) or 'none'} on this one)."
        )


def _is_loopback(host: str) -> bool:
    try:
        return any(
            ipaddress.ip_address(address[0]).is_loopback
            for *_, address in socket.getaddrinfo(host, None, socket.AF_INET)
        )
    except OSError:
        return False


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
        return True
    except OSError:
        return False


def speaks_for_all() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return not _is_shared() or os.environ["RANK"] == "0"


def own_accelerator() -> torch.device | None:
    """The accelerator that is for this one of the processes that a launcher started on this machine, if any."""
    if not _is_shared() or not torch.accelerator.is_available():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, index)


def _is_shared() -> bool:
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
