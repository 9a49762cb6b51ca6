# SPDX-License-Identifier: Apache-2.0
"""For all tests: none asserts a time; a board test may be skipped where QEMU is missing, but never in CI."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# By default Hypothesis fails an example that takes 200 ms: on a busy machine that means nothing.
settings.register_profile("no-times", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-times")

# A shell's background job ignores SIGINT, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if is_skip and item.get_closest_marker("board") and os.environ.get("CI") == "true":
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"a board test was skipped, which CI does not allow: {reason}"
    return report
