# SPDX-License-Identifier: Apache-2.0
"""`ota artifact`: write, sign, read, validate and dump artifacts. Options are named as mender-artifact's.

`read` and `validate` are asked often and by scripts: this module imports what they need, the rest waits for
the commands that use it.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import contextmanager

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError

TYPE_CHECKING = False  # without loading typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import FileIO as Stream
    from pathlib import Path
    from typing import Any

    from update_tools.artifact import Contents
    from update_tools.keys import PrivateKey

COMPRESSIONS = ("none", "gzip", "xz", "lzma", "zstd")
MEMORY_LIMIT_BYTES = 1 << 30
_BAR_BYTES = 64 << 20  # about a second
_KEY_HELP = "private key to sign with: RSA, ECDSA P-256, Ed25519"


def run(words: list[str]) -> int:
    """One command. Raises SystemExit for wrong usage, UpdateError for what goes wrong."""
    root = parser(words[0] if words else "")
    if not words:
        root.print_help(sys.stderr)
        return 2
    options = root.parse_args(words)
    options.command(options)
    return 0


def parser(chosen: str) -> argparse.ArgumentParser:
    """The command line; the many options of `write` only if that is the command."""
    root = argparse.ArgumentParser(
        prog="ota artifact",
        description="Artifacts of format 3: write, sign, read, validate, unpack.",
        formatter_class=_formatter,
    )
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    write = commands.add_parser("write", help="write an artifact", formatter_class=_formatter)
    kinds = write.add_subparsers(metavar="KIND", required=True)
    if chosen == "write":
        for name, text, command in (
            ("rootfs-image", "an image for the inactive root partition", _write_rootfs_image),
            ("module-image", "files for an update module", _write_module_image),
            ("bootstrap-artifact", "no payload: only names what a new device has", _write_bootstrap),
        ):
            about = f"Write {text}."
            kind = kinds.add_parser(name, help=text, description=about, formatter_class=_formatter)
            kind.set_defaults(command=command)
            _add_write_options(kind, name)

    sign = _add(commands, "sign", "sign an artifact; all its other bytes stay as they are", _sign)
    sign.add_argument("-k", "--key", required=True, metavar="FILE", help=_KEY_HELP)
    sign.add_argument("-o", "--output-path", metavar="FILE", help="file to write; default: in place")
    sign.add_argument("--force", action="store_true", help="replace a signature")
    reading = (
        ("read", "print what an artifact says about itself; its payload is not read", _read),
        ("validate", "read all of an artifact as a device does, and verify it", _validate),
        ("dump", "unpack an artifact: header-info, type-info, meta-data, scripts/, files/", _dump),
    )
    for name, text, command in reading:
        added = _add(commands, name, text, command)
        if name == "read":
            added.add_argument("--json", action="store_true", help="print one JSON document")
        if name == "dump":
            added.add_argument("directory", metavar="DIRECTORY", help="new or empty")
        text = "public key the signature must be of; can be repeated"
        added.add_argument("-k", "--key", action="append", default=[], metavar="FILE", help=text)
    return root


def _formatter(prog: str) -> argparse.HelpFormatter:
    """argparse's own, which would load shutil to know the width; and it makes one for every option."""
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 80
    return argparse.HelpFormatter(prog, width=width - 2)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    about = f"{text[0].upper()}{text[1:]}."
    added = commands.add_parser(name, help=text, description=about, formatter_class=_formatter)
    added.set_defaults(command=command)
    added.add_argument("path", metavar="ARTIFACT")
    return added


def _add_write_options(kind: argparse.ArgumentParser, name: str) -> None:
    def one(*names: str, metavar: str = "NAME", required: bool = False, text: str) -> None:
        kind.add_argument(*names, metavar=metavar, required=required, default="", help=text)

    def many(*names: str, metavar: str = "NAME", required: bool = False, text: str) -> None:
        text = f"{text}; can be repeated"
        kind.add_argument(*names, metavar=metavar, action="append", default=[], required=required, help=text)

    def flag(name: str, text: str) -> None:
        kind.add_argument(name, action="store_true", help=text)

    has_payload = name != "bootstrap-artifact"
    one("-n", "--artifact-name", required=True, text="name of the artifact")
    many("-t", "--device-type", required=True, text="device type it is for")
    one("-o", "--output-path", metavar="FILE", required=True, text="file to write")
    if name == "rootfs-image":
        one("-f", "--file", metavar="FILE", required=True, text="root file system image")
        flag("--no-checksum-provide", "do not provide the image's checksum")
        flag("--legacy-rootfs-image-checksum", "provide it as rootfs_image_checksum")
    if name == "module-image":
        one("-T", "--type", required=True, text="payload type: the update module's name")
        many("-f", "--file", metavar="FILE", text="payload file")
        one("-m", "--meta-data", metavar="FILE", text="JSON for the module")
    if has_payload:
        many("-s", "--script", metavar="FILE", text="state script, or a directory of them")
    many("-d", "--depends", metavar="KEY:VALUE", text="what the device must provide")
    many("-N", "--artifact-name-depends", text="artifact that must be installed, one of")
    many("-G", "--depends-groups", metavar="GROUP", text="group the device must have, one of")
    one("-g", "--provides-group", metavar="GROUP", text="group the device has afterwards")
    many("-p", "--provides", metavar="KEY:VALUE", text="what the device provides afterwards")
    many("--clears-provides", metavar="PATTERN", text="provides to remove; * matches anything")
    if has_payload:
        flag("--no-default-clears-provides", "no clears but those given")
        flag("--no-default-software-version", "no software version")
        one("--software-name", text="key FILESYSTEM.NAME.version")
        one("--software-filesystem", text="instead of rootfs-image")
        one("--software-version", metavar="VERSION", text="instead of the artifact's name")
    kind.add_argument(
        "--compression",
        choices=COMPRESSIONS,
        default="gzip",
        help="of header and payload; each makes the same bytes on every machine (default: gzip)",
    )
    kind.add_argument("--level", type=int, metavar="N", help="gzip 1-12, xz 0-9, zstd 1-19")
    kind.add_argument("-k", "--key", metavar="FILE", help=_KEY_HELP)
    kind.add_argument(
        "--source-date-epoch",
        type=int,
        metavar="SECONDS",
        default=os.environ.get("SOURCE_DATE_EPOCH") or "0",
        help="time of the members (default: SOURCE_DATE_EPOCH, else 0)",
    )


# Writing


def _write_rootfs_image(options: argparse.Namespace) -> None:
    from update_tools.artifact import ROOTFS

    checksum = "rootfs_image_checksum" if options.legacy_rootfs_image_checksum else "rootfs-image.checksum"
    _write_payload(options, ROOTFS, [options.file], None, "" if options.no_checksum_provide else checksum)


def _write_module_image(options: argparse.Namespace) -> None:
    meta_data = _bytes(options.meta_data) if options.meta_data else None
    _write_payload(options, options.type, options.file, meta_data, "")


def _write_payload(
    options: argparse.Namespace,
    payload_type: str,
    files: list[str],
    meta_data: bytes | None,
    checksum_key: str,
) -> None:
    from pathlib import Path

    from update_tools.artifact import Contents, Software, with_software

    contents = Contents(
        **_common(options),
        payload_type=payload_type,
        files=[Path(file) for file in files],
        scripts=_scripts(options.script),
        meta_data=meta_data,
    )
    software = Software(
        options.software_filesystem,
        options.software_name,
        options.software_version,
        with_version=not options.no_default_software_version,
        with_clears=not options.no_default_clears_provides,
        checksum_key=checksum_key,
    )
    _write(with_software(contents, software), options)


def _write_bootstrap(options: argparse.Namespace) -> None:
    from update_tools.artifact import Contents

    _write(Contents(**_common(options), payload_type=None), options)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """What all kinds of artifacts have."""
    return {
        "name": options.artifact_name,
        "device_types": options.device_type,
        "group": options.provides_group,
        "depends_names": options.artifact_name_depends,
        "depends_groups": options.depends_groups,
        "depends": _pairs(options.depends, "--depends"),
        "provides": _pairs(options.provides, "--provides"),
        "clears": options.clears_provides or None,
    }


def _write(contents: Contents, options: argparse.Namespace) -> None:
    from pathlib import Path

    from update_tools import artifact

    key = _private_key(options.key) if options.key else None
    output = Path(options.output_path)
    meta_data = getattr(options, "meta_data", None)
    _check_output(output, [*contents.files, *contents.scripts, *filter(None, (options.key, meta_data))])
    packing = artifact.Packing(options.compression, options.level)
    mtime = options.source_date_epoch
    with _progress(contents, output) as progress:
        artifact.write(contents, output, packing, key=key, mtime=mtime, progress=progress)
    print(f"{output}: {contents.name}, {output.stat().st_size} bytes")


def _check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raises ArtifactError if the output would replace what goes in."""
    for name in inputs:
        if os.path.exists(name) and output.exists() and os.path.samefile(name, output):
            raise ArtifactError(
                f"{output} would be overwritten: it is an input, too", hint="choose another -o"
            )


@contextmanager
def _progress(contents: Contents, output: Path) -> Iterator[Callable[[int], object]]:
    total = sum(path.stat().st_size for path in contents.files if path.exists())
    with _bar(output.name, total) as progress:
        yield progress


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar that counts bytes, where somebody is watching."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:  # in a Yocto build
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


def _sign(options: argparse.Namespace) -> None:
    from pathlib import Path

    from update_tools import artifact

    path = Path(options.path)
    output = Path(options.output_path) if options.output_path else path
    _check_output(output, [options.key])
    key = _private_key(options.key)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    with _bar(output.name, size) as progress:
        artifact.sign(path, output, key, force=options.force, progress=progress)


def _private_key(name: str) -> PrivateKey:
    from pathlib import Path

    try:
        from update_tools.keys import PrivateKey  # cryptography takes 80 ms to load
    except ModuleNotFoundError:  # in a Yocto build
        from update_tools.openssl_keys import PrivateKey  # type: ignore[assignment]

    passphrase = os.environ.get("OTA_KEY_PASSPHRASE")
    key = PrivateKey.load(Path(name), passphrase.encode() if passphrase else None)
    if key.only_ours:
        print(f"ota: {name} is an Ed25519 key: only update-agent accepts its signatures", file=sys.stderr)
    return key


def _scripts(names: list[str]) -> list[Path]:
    from pathlib import Path

    found: list[Path] = []
    for path in map(Path, names):
        found += sorted(path.iterdir()) if path.is_dir() else [path]
    return found


def _pairs(items: list[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        key, colon, value = item.partition(":")
        if not colon or not key:
            raise ArtifactError(f"{option} {item}: KEY:VALUE is expected")
        if pairs.get(key, value) != value:
            raise ArtifactError(f"{option} {item}: {key} has the value {pairs[key]} already")
        pairs[key] = value
    return pairs


def _bytes(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise ArtifactError(f"cannot read {name}: {error.strerror}") from error


# Reading


@contextmanager
def _reading(options: argparse.Namespace) -> Iterator[Reader]:
    try:
        stream = open(options.path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise ArtifactError(f"cannot read {options.path}: {error.strerror}") from error
    with stream, _watched(stream, options) as watched:
        yield Reader(watched, verify_keys=options.key, memory_limit_bytes=MEMORY_LIMIT_BYTES)


class _Counted:
    """A stream that tells how much was read."""

    def __init__(self, stream: Stream, progress: Callable[[int], object]) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size) or b""
        self._progress(len(data))
        return data

    def readinto(self, view: memoryview) -> int:
        count = self._stream.readinto(view) or 0
        self._progress(count)
        return count


@contextmanager
def _watched(stream: Stream, options: argparse.Namespace) -> Iterator[Stream | _Counted]:
    """The stream itself, or where it takes a while and somebody is watching, one with a bar."""
    size = os.fstat(stream.fileno()).st_size
    if options.command is _read or size < _BAR_BYTES or not sys.stderr.isatty():
        yield stream
        return
    with _bar(os.path.basename(options.path), size) as progress:
        yield _Counted(stream, progress)


def _read(options: argparse.Namespace) -> None:
    with _reading(options) as reader:
        if options.json:
            import json

            print(json.dumps(document(reader), indent=2, ensure_ascii=False))
            return
        for line in describe(reader):
            print(line)


def _validate(options: argparse.Namespace) -> None:
    from update_tools.artifact_files import check

    with _reading(options) as reader:
        sizes = [check(file) for file in reader.files()]
        by = f", signed by {reader.verified_by}" if reader.verified_by else ""
        print(f"{options.path}: valid, {len(sizes)} payload file(s), {sum(sizes)} bytes{by}")


def _dump(options: argparse.Namespace) -> None:
    from pathlib import Path

    from update_tools.artifact_files import dump

    with _reading(options) as reader:
        dump(reader, Path(options.directory))


def document(reader: Reader) -> dict[str, object]:
    """What `describe` tells, for programs. Keys are never renamed, only added."""
    header = reader.header
    return {
        "name": header.name,
        "group": header.group or None,
        "payload_type": header.payload_type,
        "device_types": header.device_types,
        "signed": header.signed,
        "verified_by": reader.verified_by or None,
        "state_scripts": [name for name, _ in header.scripts],
        "depends": header.depends,
        "provides": header.provides,
        "clears_provides": header.clears,
        "meta_data": header.meta_data.decode() if header.meta_data else None,
        "files": [{"name": name, "sha256": digest} for name, digest in sorted(reader.digests.items())],
    }


def describe(reader: Reader) -> Iterator[str]:
    """Lines for people."""
    header = reader.header
    signed = "yes, not verified" if header.signed else "no"
    rows = [
        ("Name", [header.name]),
        ("Group", [header.group]),
        ("Payload type", [header.payload_type or "none (bootstrap artifact)"]),
        ("Device types", header.device_types),
        ("Signed", [f"yes, by {reader.verified_by}" if reader.verified_by else signed]),
        ("State scripts", [name for name, _ in header.scripts]),
        ("Depends", [f"{k}: {' | '.join(v)}" for k, v in header.depends.items() if k != "device_type"]),
        ("Provides", [f"{k}: {v}" for k, v in sorted(header.provides.items())]),
        ("Clears", ["none given"] if header.clears is None else header.clears),
        ("Meta-data", [header.meta_data.decode()] if header.meta_data else []),
        ("Files", [f"{name}  sha256 {digest}" for name, digest in sorted(reader.digests.items())]),
    ]
    for title, values in rows:
        for number, value in enumerate(value for value in values if value):
            yield f"{title + ':' if number == 0 else '':16}{value}"
