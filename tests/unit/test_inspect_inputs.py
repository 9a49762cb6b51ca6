# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: everything that it opens, whole and cut off; what it prints, and its exit codes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pexpect
import pytest
import zstandard
from rich.console import Console
from tests.support.artifacts import SigningKey
from tests.unit.inspect_card import Card, devicetree, missing_tools, program, update

from update_tools.__main__ import main
from update_tools.artifact import Contents, Packing, Software, with_software, write
from update_tools.bench.tools import run
from update_tools.inspect.cli import SCHEMA, inspect
from update_tools.inspect.report import show
from update_tools.inspect.source import Opener
from update_tools.keys import PrivateKey

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing_tools())}"
)

PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the command zstd does
}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good card; beside it the root file system alone, as `root`."""
    return Card().make(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def poor_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card with an error and a warning, and with names that are made to deceive."""
    poor = Card()
    poor.rootfs.text("/etc/machine-id", "0123456789abcdef" * 2 + "\n")  # a warning
    poor.rootfs.text("/usr/share/[bold red]\x1b[2Jgone", "anybody's", 0o666)  # an error
    poor.rootfs.text("/etc/mender/scripts/ArtifactInstall_Enter_10", "#!/bin/sh\n", 0o755)
    return poor.make(tmp_path_factory.mktemp("poor"))


@cache
def packed(path: Path, compression: str) -> bytes:
    return PACK[compression](path.read_bytes())


def report(path: Path, **options: Any) -> dict[str, Any]:
    with Opener() as opener:
        return inspect(path, opener, **options)


def names(document: dict[str, Any]) -> list[str]:
    return [finding["name"] for finding in document["findings"]]


# What can be opened


@pytest.mark.parametrize("compression", PACK)
def test_a_card(card: Path, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "card"  # by content, not by name
    path.write_bytes(packed(card, compression))
    document = report(path)
    assert (document["kind"], document["compression"], names(document)) == ("disk", compression, [])
    assert [part["role"] for part in document["partitions"]["partitions"]] == [
        "boot",
        "root A",
        "root B",
        "data",
    ]
    assert document["environment"]["variables"]["mender_boot_part"] == "2"


@pytest.mark.parametrize("compression", PACK)
def test_a_root_file_system_alone(card: Path, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "root"
    path.write_bytes(packed(card.parent / "root", compression))
    document = report(path, machine="raspberrypi4-64")
    assert (document["kind"], document["compression"], names(document)) == ("filesystem", compression, [])
    assert document["partitions"] is None
    assert "/usr/bin/busybox" in document["programs"]["files"]


def test_a_directory(tmp_path: Path) -> None:
    """Also one that a user unpacked: its files are that user's."""
    tree = Card().make_directory(tmp_path)
    (tree / "tmp").chmod(0o1777)
    document = report(tree, machine="raspberrypi4-64")
    assert (document["kind"], names(document)) == ("directory", [])
    assert document["programs"]["files"] == report(tmp_path / "root")["programs"]["files"]


def test_a_card_that_has_its_table_in_gpt(card: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpt.wic"
    shutil.copy(card, path)
    os.truncate(path, os.path.getsize(path) + (1 << 20))  # the second table is at the end
    table = "label: gpt\nfirst-lba: 2048\n" + "".join(
        f"{number}: start={start}, size={size}, name=part{number}\n"
        for number, start, size in ((1, 16384, 8192), (2, 24576, 16384), (3, 40960, 16384), (4, 57344, 16384))
    )
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path], stdin=table)
    document = report(path)
    assert names(document) == []
    assert document["partitions"]["scheme"] == "gpt"
    assert document["partitions"]["partitions"][3]["name"] == "part4"


@pytest.mark.parametrize("compression", ["none", "gzip", "xz", "zstd", "lzma"])
def test_an_artifact_with_a_root_file_system(card: Path, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.mender"
    contents = Contents("release-2", ["raspberrypi4-64"], "rootfs-image", files=[card.parent / "root"])
    key = PrivateKey.load(SigningKey.make(tmp_path, "ec").private)
    level = 0 if compression in {"xz", "lzma"} else None
    write(with_software(contents, Software()), path, Packing(compression, level), key=key)
    document = report(path)
    assert (document["kind"], names(document)) == ("artifact", [])
    assert document["artifact"]["compression"] == {"lzma": "xz"}.get(compression, compression)
    assert document["artifact"]["signed"]
    assert document["artifact"]["filesystem"] == "ext4"
    assert document["board"]["architecture"] == "aarch64"
    assert "/usr/bin/busybox" in document["programs"]["files"]


def test_an_artifact_by_mender_artifact(card: Path, tmp_path: Path) -> None:
    if not shutil.which("mender-artifact"):
        pytest.skip("mender-artifact is not installed")
    path = tmp_path / "a.mender"
    words = ["write", "rootfs-image", "-t", "raspberrypi4-64", "-n", "r1", "-f", card.parent / "root"]
    run(["mender-artifact", *words, "-o", path])
    document = report(path)
    assert names(document) == []
    assert document["artifact"]["provides"]["rootfs-image.version"] == "r1"


def test_an_artifact_with_a_file_system_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mender"
    path.write_bytes(update(files={"root.squashfs": b"hsqs" + bytes(5000)}).build())
    document = report(path)
    assert names(document) == ["rootfs-not-read"]
    assert document["artifact"]["filesystem"] == "squashfs"


@pytest.mark.parametrize("kind", ["app", None])
def test_an_artifact_without_a_root_file_system(tmp_path: Path, kind: str | None) -> None:
    path = tmp_path / "a.mender"
    files = {"config.json": b"{}", "rules": b"x" * 3000} if kind else {}
    path.write_bytes(update(payload_type=kind, files=files, scripts={}).build())
    document = report(path, machine="raspberrypi4-64")
    assert names(document) == []
    assert document["artifact"]["payload_type"] == kind
    assert document["artifact"]["files"] == {name: len(data) for name, data in files.items()}
    assert document["programs"] is None


# What is cut off, or nothing of ours


@pytest.mark.parametrize("compression", [name for name in PACK if name != "none"])
def test_a_download_that_broke_off(
    card: Path, tmp_path: Path, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = packed(card, compression)
    path = tmp_path / "card"
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert main(["inspect", str(path)]) == 2
        assert "is the download complete?" in capsys.readouterr().err


@pytest.mark.parametrize("compression", [name for name in PACK if name != "none"])
def test_a_download_that_was_changed(
    card: Path, tmp_path: Path, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = bytearray(packed(card, compression))
    changed[len(changed) // 2] ^= 0xFF
    path = tmp_path / "card"
    path.write_bytes(changed)
    assert main(["inspect", str(path)]) == 2
    assert "cannot unpack" in capsys.readouterr().err


def test_a_card_that_is_cut_off(card: Path, tmp_path: Path) -> None:
    path = tmp_path / "card.wic"
    for size_mib, expected in ((30, {"partition-beyond-end"}), (13, {"partition-beyond-end"})):
        path.write_bytes(card.read_bytes()[: size_mib << 20])
        assert expected <= set(names(report(path)))


def test_a_root_file_system_that_is_cut_off(card: Path, tmp_path: Path) -> None:
    path = tmp_path / "root.ext4"
    whole = (card.parent / "root").read_bytes()
    for size in (len(whole) // 8, 70_000, 2048):
        path.write_bytes(whole[:size])
        assert "filesystem-damaged" in names(report(path))


def test_an_artifact_that_is_cut_off(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.mender"
    whole = update(files={"root.ext4": (card.parent / "root").read_bytes()}).build()
    path.write_bytes(whole[: len(whole) // 2])
    assert names(report(path)) == ["artifact-damaged"]
    path.write_bytes(whole[:1000])  # not even its header
    assert main(["inspect", str(path)]) == 2
    assert "ota: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"a text\n", b"PK\3\4" + bytes(1000), b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"],
)
def test_what_is_nothing_of_ours(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err.startswith("ota: ")


def test_no_file_and_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "not-there"):
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


# Exit codes and output


def test_exit_codes(card: Path, poor_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 no error, 2 usage or input, 3 found; a warning alone counts with --strict."""
    warned = Card()
    warned.rootfs.text("/etc/machine-id", "0123456789abcdef" * 2 + "\n")
    only_warning = str(warned.make(tmp_path))
    expected = {
        (str(card),): 0,
        ("--strict", str(card)): 0,
        (only_warning,): 0,
        ("--strict", only_warning): 3,
        (str(poor_card),): 3,
        ("--json", str(poor_card)): 3,
        (): 2,
        ("--no-such", str(card)): 2,
        ("--arch", "m68k", str(card)): 2,
        ("--machine", "toaster", str(card)): 2,
        ("--artifact", str(card), str(card)): 2,
        ("--list",): 0,
        ("--schema",): 0,
        ("--help",): 0,
    }
    assert {words: main(["inspect", *words]) for words in expected} == expected


@cache
def _schema() -> dict[str, Any]:
    """The schema, in which nothing may be that it does not name."""
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    def close(part: Any) -> None:
        if isinstance(part, dict):
            if "properties" in part and isinstance(part["properties"], dict):
                part.setdefault("additionalProperties", False)
            for inner in part.values():
                close(inner)
        elif isinstance(part, list):
            for inner in part:
                close(inner)

    close(schema)
    return schema


def test_json_is_as_the_schema_says(card: Path, poor_card: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "a.mender"
    artifact.write_bytes(update().build())
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, options in (
        (card, {"with_artifact": artifact}),
        (poor_card, {}),
        (card.parent / "root", {}),
        (artifact, {}),
        (empty, {}),
    ):
        jsonschema.validate(report(path, **options), _schema())


def test_json_is_one_document_whatever_the_names_of_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    odd = os.path.join(os.fsencode(tree), b"\xff\xfe\x1b[2J")
    Path(os.fsdecode(odd)).write_text("anybody's")
    os.chmod(odd, 0o666)
    done = ota("--json", tree)
    assert json.loads(done.stdout)["secrets"]["world_writable"] == ["/\udcff\udcfe\x1b[2J"]
    assert done.returncode == 3
    assert "\x1b" not in ota(tree).stdout


def ota(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process, its output in a pipe."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
    argv = [sys.executable, "-m", "update_tools", "inspect", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, **options)


def test_in_a_pipe_it_is_plain_text_and_a_finding_is_a_line(poor_card: Path) -> None:
    done = ota(poor_card)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert not re.search(r"[ \t]$", done.stdout, re.MULTILINE)
    assert [line.split()[:2] for line in done.stdout.splitlines() if re.match("error|warning", line)] == [
        ["error", "script-unreachable"],
        ["error", "world-writable"],
        ["warning", "machine-id-shared"],
    ]
    assert "/usr/share/[bold red]\\x1b[2Jgone" in done.stdout


@pytest.mark.parametrize("columns", [80, 160])
def test_on_a_terminal_no_line_is_longer(poor_card: Path, columns: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    words = ["-m", "update_tools", "inspect", str(poor_card)]
    child = pexpect.spawn(sys.executable, words, env=env, dimensions=(50, columns), encoding="utf-8")
    child.expect(pexpect.EOF, timeout=60)
    child.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)
    assert "\x1b[31m" in child.before  # red
    assert "\x1b[2J" not in child.before  # of a file's name
    assert max(map(len, shown.splitlines())) <= columns
    assert child.exitstatus == 3


def test_settings_are_shown_as_they_are_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Card()
    servers = [{"ServerURL": "https://one.example"}, {"ServerURL": "https://two.example"}]
    card.config.update(
        {"Servers": servers, "SkipVerify": False, "HttpsClient": {"Certificate": "/c", "Key": "/k"}}
    )
    main(["inspect", str(card.make(tmp_path))])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Servers https://one.example, https://two.example " in shown
    assert "SkipVerify false " in shown
    assert 'HttpsClient {"Certificate": "/c", "Key": "/k"} ' in shown


def test_a_terminal_is_not_filled_with_the_same(tmp_path: Path) -> None:
    """Ten of a kind; a pipe gets all. Device trees of other boards are counted."""
    card = Card()
    for number in range(13):
        card.rootfs.text(f"/usr/share/open{number}", "anybody's", 0o666)
        card.boot[f"other{number}.dtb"] = devicetree(compatible='"brcm,other"')
    document = report(card.make(tmp_path))
    shown = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, color_system=None)
        show(document, console)
        shown[is_terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown[True].count("/usr/share/open") == 10
    assert "and 3 more of world-writable" in shown[True]
    assert shown[False].count("/usr/share/open") == 13
    assert "raspberrypi,4-model-b" in shown[True]
    assert "and 13 more" in shown[True]
    assert "brcm,other" not in shown[True]


def test_no_other_program_is_needed(card: Path) -> None:
    done = ota(card, env={"PATH": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "raspberrypi,4-model-b" in done.stdout


def test_no_secret_is_shown(tmp_path: Path) -> None:
    card = Card()
    card.config["TenantToken"] = "of a hosted server"
    path = card.make(tmp_path)
    for words in ((), ("--json",)):
        assert "of a hosted server" not in ota(*words, path).stdout


def test_programs_of_other_languages_need_no_guard(tmp_path: Path) -> None:
    """Rust and Go have no stack protector; their compilers leave their name."""
    text = 'const char *compiler = "rustc version 1.80";\n__asm__(".text\\n.skip 20480");\n'
    made = program("-O2", "-fPIE", "-pie", source=text + "int main(void) { return compiler[0]; }")
    card = Card()
    for name in ("a", "b", "c", "d", "e", "f"):
        card.rootfs.text(f"/usr/bin/{name}", made, 0o755)
    document = report(card.make(tmp_path))
    assert "no-canary" not in names(document)
    assert document["programs"]["hardening"]["canary"] == {"have": 2, "of": 2}
