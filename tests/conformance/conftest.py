"""Counts what the common tests of transformers say of CAT-Seg, and lists every skipped test with its reason."""

from collections import Counter

import pytest

from transformers_tests import add_package


add_package()

OUTCOMES = pytest.StashKey[dict[tuple[str, str], str]]()
REASONS = pytest.StashKey[dict[tuple[str, str], dict[str, None]]]()
NO_REASON = ("", "unconditional skip")
BY_WEIGHT = ("passed", "skipped", "failed")


def pytest_configure(config: pytest.Config):
    config.stash[OUTCOMES], config.stash[REASONS] = {}, {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Called for every phase of a test and for its subtests: the worst outcome counts."""
    report = yield
    tester = item.nodeid.split("::")[1]
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ").rpartition(" is skipped: ")[2].strip()
        if reason in NO_REASON:
            report.outcome, report.longrepr = "failed", f"{item.nodeid} was skipped without a reason."
        else:
            item.config.stash[REASONS].setdefault((tester, reason), {})[item.name] = None
    outcomes = item.config.stash[OUTCOMES]
    outcomes[tester, item.name] = max(outcomes.get((tester, item.name), "passed"), report.outcome, key=BY_WEIGHT.index)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    terminalreporter.section("conformance")
    for (tester, reason), tests in sorted(config.stash[REASONS].items()):
        terminalreporter.write_line(f"{tester}, skipped {len(tests)}: {reason}")
        terminalreporter.write_line(f"    {', '.join(tests)}")
    counts = Counter((tester, outcome) for (tester, _), outcome in config.stash[OUTCOMES].items())
    terminalreporter.write_line("".join([f"\n{'tester':32}", *(f"{outcome:>10}" for outcome in BY_WEIGHT)]))
    for tester in sorted({tester for tester, _ in counts}):
        terminalreporter.write_line("".join([f"{tester:32}", *(f"{counts[tester, name]:10}" for name in BY_WEIGHT)]))
