# SPDX-License-Identifier: Apache-2.0
"""Hostile artifacts meet a real installation: nothing is written but the module's tree and state scripts."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.artifacts import COMPRESS, Artifact, Entry, header, tar
from tests.support.hostile import CASES, ODD_NAMES, raw_header
from tests.support.reading import Pipe

from update_agent.config import Config
from update_agent.errors import ArtifactError, PayloadError, UpdateError
from update_agent.intake import Intake
from update_agent.log import Log
from update_agent.loop import plain_wait
from update_agent.scripts import parse_name

STREAMS = """
mkdir -p tmp/got
while line=$(cat stream-next) && [ -n "$line" ]; do
    cat "$line" >"tmp/got/${line##*/}"
done
"""


class Device:
    """A sandbox: everything an agent knows is in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = Config()
        self.config.conf_dir, self.config.data_dir = str(root / "conf"), str(root / "share")
        self.config.datastore = str(root / "store")
        self.tree, self.scripts = Path(self.config.tree_dir()), Path(self.config.scripts_artifact())
        Path(self.config.modules_dir()).mkdir(parents=True)
        (root / "conf").mkdir()
        (root / "store").mkdir()
        (root / "store/device_type").write_text("device_type=virt64\n")
        self.install_module(STREAMS)

    def install_module(self, download: str) -> None:
        path = Path(self.config.modules_dir()) / "module"
        path.write_text(f"#!/bin/sh\nset -eu\ncase $1 in Download)\n{download}\n;;\nesac\n")
        path.chmod(0o755)

    def take_in(self, data: bytes) -> None:
        """As `install` does, up to the end of Download. Raises UpdateError."""
        shutil.rmtree(self.tree, ignore_errors=True)
        log = Log(stream=io.StringIO())
        intake = Intake(Pipe(data), self.config, log, None, plain_wait)  # type: ignore[arg-type]
        intake.accept({"artifact_name": "v1"})
        if intake.header.payload_type is not None:
            intake.prepare({"artifact_name": "v1"})
        intake.stream()

    def listing(self) -> dict[str, tuple[int, bytes | str]]:
        """Every file outside the tree and the scripts: its mode, and what is in it or where it leads."""
        found: dict[str, tuple[int, bytes | str]] = {}
        for directory, folders, files in os.walk(self.root):
            here = Path(directory)
            folders[:] = [name for name in folders if here / name not in (self.tree, self.scripts)]
            for name in files + folders:
                path = here / name
                content: bytes | str = b""
                if path.is_symlink():
                    content = os.readlink(path)
                elif path.is_file():
                    content = path.read_bytes()
                found[str(path)] = path.lstat().st_mode, content
        return found

    def inside(self) -> list[Path]:
        """What is in the module's tree."""
        return list(self.tree.rglob("*"))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path / "device")
    made.tree.parent.mkdir(parents=True)
    return made


@pytest.mark.parametrize("download", [STREAMS, "exit 0"], ids=["streams", "files"])
def test_nothing_is_written_outside(device: Device, download: str) -> None:
    device.install_module(download)
    before = device.listing()
    for name, (make, reason) in CASES.items():
        with pytest.raises((ArtifactError, PayloadError)) as caught:
            device.take_in(make())
        assert reason in str(caught.value), name
        assert device.listing() == before, name
        assert not any(path.is_symlink() for path in device.inside()), name
        scripts = os.listdir(device.scripts) if device.scripts.exists() else []
        assert all(parse_name(script) for script in scripts if script != "version"), name


CHANGES: list[Callable[[list[Entry], int], list[Entry]]] = [
    lambda entries, at: entries[:at] + entries[at + 1 :],
    lambda entries, at: [*entries, entries[at]],
    lambda entries, at: [entries[at], *entries[:at], *entries[at + 1 :]],
    lambda entries, at: entries[::-1],
    *(
        lambda entries, at, kind=kind: _with(
            entries, at, header(entries[at].name, 0, kind=kind, link=b"/etc/passwd")
        )
        for kind in (b"1", b"2", b"3", b"5", b"x", b"L", b"g")
    ),
    *(
        lambda entries, at, size=size: _with(entries, at, header(entries[at].name, size))
        for size in (0, 1, 511, 513, 8 << 30, b"\xff" * 12)
    ),
    *(lambda entries, at, head=head: _with(entries, at, head) for head, _ in ODD_NAMES.values()),
    *(
        lambda entries, at, name=name: [*entries[:at], Entry(name, entries[at].data), *entries[at + 1 :]]
        for name in (
            "payload.bin",
            "version",
            "scripts/ArtifactInstall_Enter_10",
            "../payload.bin",
            "a/b",
            ".",
            "tmp",
        )
    ),
]


def _with(entries: list[Entry], at: int, head: bytes) -> list[Entry]:
    return [*entries[:at], Entry("", entries[at].data, head=head), *entries[at + 1 :]]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.sampled_from(["outer", "header", "payload"]),
    changes=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 5)), min_size=1, max_size=3),
    compression=st.sampled_from([*COMPRESS]),
)
def test_whatever_is_done_to_the_members(
    device: Device,
    where: str,
    changes: list[tuple[Callable[[list[Entry], int], list[Entry]], int]],
    compression: str,
) -> None:
    """Refused, or what came through is what the manifest lists; and nothing is written elsewhere."""
    made = Artifact(scripts={"ArtifactInstall_Enter_10": b"#!/bin/sh\n"}, files={"a": b"a" * 600, "b": b"b"})
    made.compression = made.header_compression = compression
    entries = {
        "outer": made.members(),
        "header": made.header_members(),
        "payload": [Entry(name, data) for name, data in made.files.items()],
    }[where]
    for change, at in changes:
        if entries:
            entries = change(entries, at % len(entries))
    if where == "outer":
        data = tar(entries)
    elif where == "header":
        data = raw_header(COMPRESS[compression](tar(entries)), compression)
        made.files = {"payload.bin": b"payload " * 100}
    else:
        made.data_entries = entries
        data = made.build()
    before = device.listing()
    try:
        device.take_in(data)
    except UpdateError:
        pass
    else:
        got = {path.name: path.read_bytes() for path in (device.tree / "tmp/got").glob("*")}
        assert got == made.files
    assert device.listing() == before
