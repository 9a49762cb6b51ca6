# SPDX-License-Identifier: Apache-2.0
"""`ota artifact`: write, sign, read, validate and dump artifacts. Options are named as mender-artifact's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from update_agent.artifact import PayloadFile, Reader
from update_agent.errors import ArtifactError
from update_tools import artifact
from update_tools.artifact import Contents, Packing, Software
from update_tools.packing import GZIP_PROGRAMS, SUFFIXES

if TYPE_CHECKING:
    from update_tools.keys import PrivateKey

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
write_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(write_app, name="write", help="Write an artifact of format 3.")

Name = Annotated[str, typer.Option("-n", "--artifact-name", help="Name of the artifact.")]
DeviceTypes = Annotated[
    list[str], typer.Option("-t", "--device-type", help="Device type it is for. Can be repeated.")
]
Output = Annotated[Path, typer.Option("-o", "--output-path", help="File to write.")]
Scripts = Annotated[
    list[Path], typer.Option("-s", "--script", help="State script, or a directory of them. Can be repeated.")
]
Depends = Annotated[
    list[str], typer.Option("-d", "--depends", metavar="KEY:VALUE", help="What the device must provide.")
]
DependsNames = Annotated[
    list[str], typer.Option("-N", "--artifact-name-depends", help="Artifact that must be installed, one of.")
]
DependsGroups = Annotated[
    list[str], typer.Option("-G", "--depends-groups", help="Group the device must have, one of.")
]
Group = Annotated[str, typer.Option("-g", "--provides-group", help="Group the device has afterwards.")]
Provides = Annotated[
    list[str],
    typer.Option("-p", "--provides", metavar="KEY:VALUE", help="What the device provides afterwards."),
]
Clears = Annotated[
    list[str],
    typer.Option("--clears-provides", metavar="PATTERN", help="Provides to remove; * matches anything."),
]
NoClears = Annotated[bool, typer.Option("--no-default-clears-provides", help="No clears but those given.")]
NoVersion = Annotated[bool, typer.Option("--no-default-software-version", help="No software version.")]
SoftwareName = Annotated[str, typer.Option("--software-name", help="Key FILESYSTEM.NAME.version.")]
SoftwareFilesystem = Annotated[str, typer.Option("--software-filesystem", help="Instead of rootfs-image.")]
SoftwareVersion = Annotated[str, typer.Option("--software-version", help="Instead of the artifact's name.")]
Compression = Annotated[str, typer.Option("--compression", help=f"One of {', '.join(SUFFIXES)}.")]
Level = Annotated[int | None, typer.Option("--level", help="gzip 1-9, xz 0-9, zstd 1-19.")]
GzipProgram = Annotated[
    str, typer.Option(help=f"One of {', '.join(GZIP_PROGRAMS)}; name it for the same bytes on every machine.")
]
SigningKey = Annotated[
    Path | None, typer.Option("-k", "--key", help="Private key to sign with: RSA, ECDSA P-256, Ed25519.")
]
Epoch = Annotated[int, typer.Option(envvar="SOURCE_DATE_EPOCH", help="Time of the members.")]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT")]
PublicKeys = Annotated[
    list[Path], typer.Option("-k", "--key", help="Public key the signature must be of. Can be repeated.")
]


@write_app.command("rootfs-image")
def write_rootfs_image(
    artifact_name: Name,
    device_type: DeviceTypes,
    file: Annotated[Path, typer.Option("-f", "--file", help="Root file system image.")],
    output_path: Output,
    script: Scripts = [],  # noqa: B006
    depends: Depends = [],  # noqa: B006
    artifact_name_depends: DependsNames = [],  # noqa: B006
    depends_groups: DependsGroups = [],  # noqa: B006
    provides_group: Group = "",
    provides: Provides = [],  # noqa: B006
    clears_provides: Clears = [],  # noqa: B006
    no_default_clears_provides: NoClears = False,
    no_default_software_version: NoVersion = False,
    no_checksum_provide: Annotated[
        bool, typer.Option("--no-checksum-provide", help="Do not provide the image's checksum.")
    ] = False,
    legacy_rootfs_image_checksum: Annotated[
        bool, typer.Option("--legacy-rootfs-image-checksum", help="Provide it as rootfs_image_checksum.")
    ] = False,
    software_name: SoftwareName = "",
    software_filesystem: SoftwareFilesystem = "",
    software_version: SoftwareVersion = "",
    compression: Compression = "gzip",
    level: Level = None,
    gzip_program: GzipProgram = "",
    key: SigningKey = None,
    source_date_epoch: Epoch = 0,
) -> None:
    """An image for the inactive root partition."""
    checksum_key = "rootfs_image_checksum" if legacy_rootfs_image_checksum else "rootfs-image.checksum"
    contents = Contents(
        name=artifact_name,
        device_types=device_type,
        payload_type=artifact.ROOTFS,
        files=[file],
        scripts=_scripts(script),
        group=provides_group,
        depends_names=artifact_name_depends,
        depends_groups=depends_groups,
        depends=_depends(depends),
        provides=_pairs(provides, "--provides"),
        clears=clears_provides or None,
    )
    software = Software(
        software_filesystem,
        software_name,
        software_version,
        with_version=not no_default_software_version,
        with_clears=not no_default_clears_provides,
        checksum_key="" if no_checksum_provide else checksum_key,
    )
    packing = Packing(compression, level, gzip_program)
    _write(artifact.with_software(contents, software), output_path, packing, key, source_date_epoch)


@write_app.command("module-image")
def write_module_image(
    artifact_name: Name,
    device_type: DeviceTypes,
    type_: Annotated[str, typer.Option("-T", "--type", help="Payload type: the update module's name.")],
    output_path: Output,
    file: Annotated[list[Path], typer.Option("-f", "--file", help="Payload file. Can be repeated.")] = [],  # noqa: B006
    meta_data: Annotated[Path | None, typer.Option("-m", "--meta-data", help="JSON for the module.")] = None,
    script: Scripts = [],  # noqa: B006
    depends: Depends = [],  # noqa: B006
    artifact_name_depends: DependsNames = [],  # noqa: B006
    depends_groups: DependsGroups = [],  # noqa: B006
    provides_group: Group = "",
    provides: Provides = [],  # noqa: B006
    clears_provides: Clears = [],  # noqa: B006
    no_default_clears_provides: NoClears = False,
    no_default_software_version: NoVersion = False,
    software_name: SoftwareName = "",
    software_filesystem: SoftwareFilesystem = "",
    software_version: SoftwareVersion = "",
    compression: Compression = "gzip",
    level: Level = None,
    gzip_program: GzipProgram = "",
    key: SigningKey = None,
    source_date_epoch: Epoch = 0,
) -> None:
    """Files for an update module."""
    contents = Contents(
        name=artifact_name,
        device_types=device_type,
        payload_type=type_,
        files=file,
        scripts=_scripts(script),
        meta_data=_bytes(meta_data) if meta_data else None,
        group=provides_group,
        depends_names=artifact_name_depends,
        depends_groups=depends_groups,
        depends=_depends(depends),
        provides=_pairs(provides, "--provides"),
        clears=clears_provides or None,
    )
    software = Software(
        software_filesystem,
        software_name,
        software_version,
        with_version=not no_default_software_version,
        with_clears=not no_default_clears_provides,
    )
    packing = Packing(compression, level, gzip_program)
    _write(artifact.with_software(contents, software), output_path, packing, key, source_date_epoch)


@write_app.command("bootstrap-artifact")
def write_bootstrap_artifact(
    artifact_name: Name,
    device_type: DeviceTypes,
    output_path: Output,
    artifact_name_depends: DependsNames = [],  # noqa: B006
    depends: Depends = [],  # noqa: B006
    depends_groups: DependsGroups = [],  # noqa: B006
    provides_group: Group = "",
    provides: Provides = [],  # noqa: B006
    clears_provides: Clears = [],  # noqa: B006
    compression: Compression = "gzip",
    key: SigningKey = None,
    source_date_epoch: Epoch = 0,
) -> None:
    """No payload: only names what a new device has installed."""
    contents = Contents(
        name=artifact_name,
        device_types=device_type,
        payload_type=None,
        group=provides_group,
        depends_names=artifact_name_depends,
        depends_groups=depends_groups,
        depends=_depends(depends),
        provides=_pairs(provides, "--provides"),
        clears=clears_provides or None,
    )
    _write(contents, output_path, Packing(compression), key, source_date_epoch)


@app.command()
def sign(
    path: ArtifactPath,
    key: Annotated[Path, typer.Option("-k", "--key", help="Private key: RSA, ECDSA P-256, Ed25519.")],
    output_path: Annotated[
        Path | None, typer.Option("-o", "--output-path", help="File to write; default: in place.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a signature.")] = False,
) -> None:
    """Sign an artifact; all its other bytes stay as they are."""
    artifact.sign(path, output_path or path, _private_key(key), force=force)


@app.command()
def read(
    path: ArtifactPath,
    key: PublicKeys = [],  # noqa: B006
) -> None:
    """Print what an artifact says about itself. The payload is not read."""
    with _reading(path, key) as reader:
        for line in describe(reader):
            print(line)


@app.command()
def validate(
    path: ArtifactPath,
    key: PublicKeys = [],  # noqa: B006
) -> None:
    """Read all of an artifact as a device does: format, checksums, and with a key the signature."""
    with _reading(path, key) as reader:
        sizes = [file.size for file in reader.files()]
        by = f", signed by {reader.verified_by}" if reader.verified_by else ""
        print(f"{path}: valid, {len(sizes)} payload file(s), {sum(sizes)} bytes{by}")


@app.command()
def dump(
    path: ArtifactPath,
    directory: Annotated[Path, typer.Argument(help="New or empty directory.")],
    key: PublicKeys = [],  # noqa: B006
) -> None:
    """Unpack an artifact: header-info, type-info, meta-data, scripts/ and files/."""
    with _reading(path, key) as reader:
        try:
            directory.mkdir(exist_ok=True)
            if any(directory.iterdir()):
                raise ArtifactError(f"{directory} is not empty")
            _dump(reader, directory)
        except OSError as error:
            raise ArtifactError(f"cannot unpack to {directory}: {error}") from error


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


def _dump(reader: Reader, directory: Path) -> None:
    header = reader.header
    (directory / "header-info").write_bytes(header.header_info)
    (directory / "type-info").write_bytes(header.type_info)
    if header.meta_data is not None:
        (directory / "meta-data").write_bytes(header.meta_data)
    for name, content in header.scripts:
        (directory / "scripts").mkdir(exist_ok=True)
        (directory / "scripts" / name).write_bytes(content)
        (directory / "scripts" / name).chmod(0o755)
    for file in reader.files():
        (directory / "files").mkdir(exist_ok=True)
        _save(file, directory / "files" / file.name)


def _save(file: PayloadFile, path: Path) -> None:
    view = memoryview(bytearray(artifact.CHUNK_BYTES))
    with path.open("wb", buffering=0) as target:
        while got := file.readinto(view):
            target.write(view[:got])


def _write(contents: Contents, output: Path, packing: Packing, key: Path | None, mtime: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    signing_key = _private_key(key) if key else None
    total = sum(path.stat().st_size for path in contents.files if path.exists())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(output.name, total=total)
        artifact.write(
            contents,
            output,
            packing,
            key=signing_key,
            mtime=mtime,
            progress=lambda count: bar.advance(task, count),
        )
    print(f"{output}: {contents.name}, {output.stat().st_size} bytes")


@contextmanager
def _reading(path: Path, keys: list[Path]) -> Iterator[Reader]:
    try:
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    with stream:
        yield Reader(stream, verify_keys=[str(key) for key in keys], memory_limit_bytes=1 << 30)


def _private_key(path: Path) -> PrivateKey:
    from update_tools.keys import PrivateKey  # cryptography takes 80 ms to load

    passphrase = os.environ.get("OTA_KEY_PASSPHRASE")
    key = PrivateKey.load(path, passphrase.encode() if passphrase else None)
    if key.only_ours:
        print(f"ota: {path} is an Ed25519 key: only update-agent accepts its signatures", file=sys.stderr)
    return key


def _scripts(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.iterdir()) if path.is_dir() else [path]
    return found


def _pairs(items: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, colon, value = item.partition(":")
        if not colon or not key:
            _usage(f"{option} {item}: KEY:VALUE is expected")
        pairs[key] = value
    return pairs


def _depends(items: list[str]) -> dict[str, str | list[str]]:
    return dict(_pairs(items, "--depends"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error


def _usage(message: str) -> NoReturn:
    raise typer.BadParameter(message)
