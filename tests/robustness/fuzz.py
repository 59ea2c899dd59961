"""Gives the library random and damaged input and counts what comes of it.

  make fuzz INPUTS=100000
  PYTHONPATH=tests:training python tests/robustness/fuzz.py --inputs 10000 --seed 1  # with seed 2, 3, ... others

The exit status is 1 if an input made something else of itself than a result of the right size or an error that says
what is wrong; those are printed, made as small as possible. `test_fuzzing.py` runs a small share of this.
"""

import argparse
import logging
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, seed, settings
from transformers.utils.logging import disable_progress_bar

from fuzzing.targets import TARGETS, Target


INPUTS_PER_SEED = 500  # a new seed forgets what was tried, which slows later inputs down
MAX_LISTED = 25


def fuzz(target: Target, num_inputs: int, run_seed: int) -> tuple[Counter[str], list[str]]:
    """What came of the inputs, by the kind of outcome; and the faults, as text."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    while num_inputs > (done := outcomes.total()):

        @seed(f"{run_seed} {done}")
        @settings(
            max_examples=min(INPUTS_PER_SEED, num_inputs - done),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(value=target.inputs)
        def run(value):
            outcomes["fault"] += 1
            outcome = target.run(value)
            outcomes["fault"] -= 1
            # Values differ from input to input, the sentences around them do not.
            outcomes[re.sub(r"'.*'|\".*\"|[\d.]+|\[.*\]|\(.*\)", "_", outcome.splitlines()[0])[:100]] += 1

        try:
            run()
        except Exception as error:
            kinds = getattr(error, "exceptions", [error])
            faults = ["".join(traceback.format_exception(kind, limit=-4)) for kind in kinds]
        if faults or outcomes.total() == done:  # or there are no more inputs
            break
    return outcomes, faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs (default: %(default)s)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only what has this in its name")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    disable_progress_bar()
    targets = [target for target in TARGETS if re.search(options.only, target.name)]
    total, num_faults = 0, 0
    for target in targets:
        start = time.perf_counter()
        share = target.share / sum(target.share for target in targets)
        outcomes, faults = fuzz(target, max(1, round(options.inputs * share)), options.seed)
        total, num_faults = total + outcomes.total(), num_faults + len(faults)
        print(
            f"{target.name}: {outcomes.total():,} inputs in {time.perf_counter() - start:.0f} s, "
            f"{outcomes['result']:,} results, {outcomes.total() - outcomes['result'] - outcomes['fault']:,} refused, "
            f"{outcomes['fault']:,} faults",
            flush=True,
        )
        for outcome, count in outcomes.most_common(MAX_LISTED):
            print(f"  {count:6,} {outcome}")
        print("\n".join(faults), flush=True)
    print(f"{total:,} inputs, {num_faults} kinds of faults")
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
