"""A small share of `fuzz.py`, the same in every run."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzzing.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_gives_a_result_or_says_what_is_wrong(target: Target):
    outcomes = []

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=20 if target.share < 80 else 60,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=target.inputs)
    def run(value):
        outcomes.append(target.run(value))

    run()
    assert "result" in outcomes and outcomes.count("result") < len(outcomes)
