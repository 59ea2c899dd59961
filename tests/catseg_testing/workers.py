"""What is left of the processes that load images."""

import gc
import multiprocessing


def no_worker_is_left() -> bool:
    """Whether all processes that this one started have ended, once what refers to them is gone."""
    gc.collect()  # matplotlib's errors keep the frames of a run that has ended
    for worker in multiprocessing.active_children():
        worker.join(30)  # torch tells a worker to end and does not wait for it
    return not multiprocessing.active_children()
