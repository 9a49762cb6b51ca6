# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: a product team rehearses its scripts in its own layer's tests.

With this repository's `agent` and `scripts` on the Python path, in the conftest.py of those tests' root:

    pytest_plugins = ["update_tools.rehearse.plugin"]

and in a test:

    def test_scripts_survive(ota_rehearsal):
        ota_rehearsal("recipes-core/product-scripts/files", hooks="recipes-core/product-hooks/files")

The call fails the test if anything was found; `allow` names what may be. It returns the rehearsal, of which
`findings`, `played` and `team` can be looked at. Paths are relative to pytest's root directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from update_agent.errors import UpdateError
from update_tools.rehearse import rehearsal, report
from update_tools.rehearse.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from update_tools.rehearse.findings import Finding
    from update_tools.rehearse.rehearsal import Rehearsal


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line of pytest."""
    group = parser.getgroup("ota", "rehearsal of over-the-air updates")
    group.addoption("--ota-quick", action="store_true", help="rehearse without kills and power cuts")
    group.addoption("--ota-html", metavar="DIR", help="write a report of each rehearsal into this folder")


@pytest.fixture
def ota_rehearsal(request: pytest.FixtureRequest) -> Callable[..., Rehearsal]:
    """Rehearse scripts, hooks and an artifact; the test fails if anything is found that is not allowed."""
    config = request.config
    root = config.rootpath

    def rehearse(
        *scripts: str | Path,
        hooks: str | Path | None = None,
        artifact: str | Path | None = None,
        conf: str | Path | None = None,
        files: str | Path | None = None,
        quick: bool | None = None,
        ignore: Sequence[str] = (),
        persistent: Sequence[str] = (),
        allow: Sequence[str] = (),
        timeout_s: float = rehearsal.PATIENCE_S,
        clock: str = rehearsal.CLOCK,
        jobs: int = 0,
        sample: int = 1,
        only: Sequence[str] = (),
    ) -> Rehearsal:
        def place(path: str | Path | None) -> Path | None:
            return None if path is None else root / path

        options = rehearsal.Options(
            quick=bool(config.getoption("--ota-quick")) if quick is None else quick,
            ignored=ignore,
            persistent=persistent,
            patience_s=timeout_s,
            clock=clock,
            jobs=jobs,
            sample=sample,
            only=only,
        )
        try:
            given = Team(
                *(root / path for path in scripts),
                hooks=place(hooks),
                artifact=place(artifact),
                conf=place(conf),
                root=place(files),
            )
            done = rehearsal.rehearse(given, options)
            done.check_names()
        except UpdateError as error:
            pytest.fail(f"cannot be rehearsed: {error}", pytrace=False)
        folder = config.getoption("--ota-html")
        if folder:
            _write_page(done, root / folder, request.node.name)
        found = [finding for finding in done.findings if finding.name not in allow]
        if found:
            pytest.fail("\n".join([report.counts(done), *map(_line, found)]), pytrace=False)
        return done

    return rehearse


def _write_page(done: Rehearsal, folder: Path, name: str) -> None:
    from update_tools.rehearse.html import page

    folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    (folder / f"{safe}.html").write_text(page(done), encoding="utf-8")


def _line(finding: Finding) -> str:
    seen = f" [{finding.scenarios[0]}]" if finding.scenarios else ""
    return f"{finding.severity} {finding.name} {finding.where}: {finding.what}{seen}\n    {finding.hint}"
