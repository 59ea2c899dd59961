"""Whether the processes on other machines are still there. A machine that loses its power or its network says nothing,
and the others would wait for it until the process group's timeout, hours later."""

import atexit
import os
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore


SECONDS_BETWEEN_BEATS = 3.0
SECONDS_OF_SILENCE = 30.0
_DONE = 2**40


class Heartbeat:
    """
    Tells the other processes that this one is there, and ends it when one of them, or the store itself, has not been
    heard of for too long.

    Args:
        store (`Store`): Where processes count their beats, with a connection that nothing else uses.
        rank (`int`), world_size (`int`): Of this process.
        silence (`float`), interval (`float`): Seconds that a process may say nothing, and between its own beats.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        silence: float,
        interval: float,
    ):
        self.store = store
        self.rank = rank
        self.silence = silence
        self.interval = interval
        self._others = [other for other in range(world_size) if other != rank]
        self._counts = dict.fromkeys(self._others, 0)
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        # By rank, when each was heard of; this process's own entry is when the store last answered.
        self._heard = dict.fromkeys(range(world_size), time.monotonic())

    def start(self):
        # The store may never answer: another thread looks at the clock.
        self._threads = [
            threading.Thread(target=function, name="heartbeat", daemon=True) for function in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """Tells the others that nothing more will be heard of this process, and that nothing is wrong."""
        if not self._stopped.is_set():
            self._stopped.set()
            # Python must not end while one of them asks the store.
            for thread in self._threads:
                thread.join(self.silence)
            try:
                self.store.add(str(self.rank), _DONE)
            except DistError:
                pass

    def silent(self) -> int | None:
        """The rank of a process that has said nothing for too long, if there is one; its own if the store has not."""
        answered = self._heard[self.rank]
        if time.monotonic() - answered > self.silence:
            return self.rank
        # Without an answer there is nothing to be heard of the others.
        return next((rank for rank, heard in self._heard.items() if answered - heard > self.silence), None)

    def _beat(self):
        while not self._stopped.wait(self.interval):
            try:
                self.store.add(str(self.rank), 1)
                for other in self._others:
                    count = self.store.add(str(other), 0)
                    if count != self._counts[other] or count >= _DONE:
                        self._counts[other], self._heard[other] = count, time.monotonic()
                self._heard[self.rank] = time.monotonic()
            except DistError:  # until it has been silent for too long
                continue

    def _watch(self):
        while not self._stopped.wait(self.interval):
            if (rank := self.silent()) is not None:
                who = "The machine that the processes meet at" if rank == self.rank else f"Process {rank}"
                print(
                    f"{who} has not been heard of by process {self.rank} for {self.silence:.0f} seconds: the job "
                    "ends. The last complete checkpoint is as it was: go on with --resume_from_checkpoint latest.",
                    file=sys.stderr,
                    flush=True,
                )
                # The main thread may wait for the process that is gone.
                os._exit(1)


def watch_other_machines():
    """Starts a [`Heartbeat`] if a launcher has started processes on several machines."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == int(os.environ.get("LOCAL_WORLD_SIZE", world_size)):
        return
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=SECONDS_OF_SILENCE),
    )
    # A launcher that starts the processes again keeps the store, with what those that ended have left in it.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"heartbeat/{start}", store)
    heartbeat = Heartbeat(
        store, int(os.environ["RANK"]), world_size, silence=SECONDS_OF_SILENCE, interval=SECONDS_BETWEEN_BEATS
    )
    atexit.register(heartbeat.stop)
    heartbeat.start()
