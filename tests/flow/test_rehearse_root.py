# SPDX-License-Identifier: Apache-2.0
"""`ota rehearse --root`: what a team lays over the machine's root must never lead to the host's own files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.flow.test_rehearse import found, needs_machines, write

from update_tools.rehearse import rehearsal, rootdir
from update_tools.rehearse.team import InputError, Team
from update_tools.rehearse.template import Template


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Stands for the host's /etc."""
    return write(tmp_path / "host", {"passwd": "#!host", "resolv.conf": "#!host"}, mode=0o644)


def given(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


def unchanged(host: Path) -> bool:
    return {path.name: path.read_text() for path in host.iterdir()} == {
        "passwd": "#!host",
        "resolv.conf": "#!host",
    }


def template(tmp_path: Path, root: Path) -> Template:
    scripts = write(tmp_path / "scripts", {"Download_Enter_10_x": "exit 0"})
    return Template(Team(scripts, root=root), tmp_path / "machine")


def test_files_of_the_machine_replace_links(tmp_path: Path, host: Path) -> None:
    """As a real root has it: /etc/resolv.conf is a link to what the host has as well."""
    root = given(tmp_path)
    (root / "etc/resolv.conf").symlink_to(host / "resolv.conf")
    made = template(tmp_path, root)
    assert unchanged(host)
    assert "192.0.2.53" in (made.root / "etc/resolv.conf").read_text()
    assert not (made.root / "etc/resolv.conf").is_symlink()


@pytest.mark.parametrize("climb", ["", "../../../../../../../.."])
def test_folders_that_are_links_stay_in_the_machine(tmp_path: Path, host: Path, climb: str) -> None:
    root = given(tmp_path)
    (root / "etc/mender").symlink_to(f"{climb}{host}")
    made = template(tmp_path, root)
    assert unchanged(host)
    assert (made.root / str(host)[1:] / "mender.conf").is_file()


@pytest.mark.parametrize("name", ["etc", "data", "var", "usr", "root"])
def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path, host: Path, name: str) -> None:
    root = given(tmp_path)
    (root / "etc").rmdir()
    (root / name).symlink_to(host)
    with pytest.raises(InputError, match=f"{root}/{name} is a link or a file"):
        template(tmp_path, root)
    assert unchanged(host)


def test_links_in_a_circle(tmp_path: Path) -> None:
    root = given(tmp_path)
    (root / "etc/mender").symlink_to("mender")
    with pytest.raises(InputError, match="leads in a circle"):
        template(tmp_path, root)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bin/tool", "would hide the host's programs"),
        ("tmp/tool", "would not be seen: the machine has its own /tmp"),
        ("dev/null", "the machine has its own"),
        ("etc/passwd/x", "cannot put etc/passwd"),
    ],
)
def test_what_cannot_be_there_is_refused(tmp_path: Path, path: str, message: str) -> None:
    root = write(given(tmp_path), {path: "#!x"})
    with pytest.raises(InputError, match=message):
        template(tmp_path, root)


def test_pipes_are_refused(tmp_path: Path) -> None:
    root = given(tmp_path)
    os.mkfifo(root / "etc/pipe")
    with pytest.raises(InputError, match=re.escape(f"{root}/etc/pipe is neither file, folder nor link")):
        template(tmp_path, root)


def test_paths_as_on_the_device(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, target in (("a/up", "../b"), ("whole", "/a"), ("out", "../../x"), ("b", "c/d")):
        (tmp_path / name).symlink_to(target)
    table = {"a/up/f": "c/d/f", "whole/f": "a/f", "out/f": "x/f", "/a/../../a/f": "a/f", "new/f": "new/f"}
    for path, expected in table.items():
        assert rootdir.inside(tmp_path, path) == tmp_path / expected, path


@needs_machines
def test_a_root_like_an_image(tmp_path: Path) -> None:
    """Merged /usr, volatile folders and empty mount points, as OE-core makes them."""
    root = given(tmp_path)
    for name in ("proc", "sys", "run", "tmp", "usr/bin", "var/volatile", "dev"):
        (root / name).mkdir(parents=True)
    for link, target in (
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("var/log", "volatile/log"),
        ("var/tmp", "volatile/tmp"),
        ("var/run", "../run"),
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ):
        (root / link).symlink_to(target)
    write(root, {"usr/bin/tool-of-ours": "echo hello", "etc/product": "#!mine"})
    check = """
        [ "$(tool-of-ours)" = hello ] && [ -e /etc/product ] && [ ! -L /etc/resolv.conf ]
        date >/var/log/seen
    """
    scripts = write(tmp_path / "scripts", {"ArtifactInstall_Enter_10_x": check})
    options = rehearsal.Options(quick=True, only=["nothing more"], persistent=["/var/volatile"])
    done = rehearsal.rehearse(Team(scripts, root=root), options)
    assert found(done) == {}
    assert [update.status for update in done.played[0].updates] == ["success", "success"]
