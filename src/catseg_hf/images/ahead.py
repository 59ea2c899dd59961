"""Threads that work ahead of the model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar


Item, Value = TypeVar("Item"), TypeVar("Value")


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the `with` block, of whatever it ends: what they have begun is completed."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def map_ahead(
    threads: ThreadPoolExecutor, function: Callable[[Item], Value], items: Iterable[Item], count: int
) -> Iterator[Value]:
    """What the function returns for each item, while `count` more are worked on or waiting."""
    waiting = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()
