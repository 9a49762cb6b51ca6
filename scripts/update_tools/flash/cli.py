# SPDX-License-Identifier: Apache-2.0
"""`ota flash`: the command line. It decides what may be written, asks, and says what was done."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from update_tools.given_path import given_path
from update_tools.inspect.units import mib

from . import bmap, devices, plan, refuse, show, source, target, wifi, writer
from .errors import FlashError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .bmap import Bmap
    from .devices import Medium
    from .provision import Provision
    from .source import Image
    from .target import Target

_ABOUT = """\
Write the image of a card (.wic, also .bz2, .xz, .zst, .gz) to a removable medium and read it back. Only
removable media and loop devices are written, none that is mounted or in use, read-only or too small.

A block map beside the image (.bmap) is used: blocks without data are left out, and each range is checked.
The start of the medium, with the partition table, is written last: a medium that was left half-written does
not boot, and the same command starts over.

Options under "for this device" put files into the image's data partition; root file systems stay as built.
Without DEVICE the media are shown, and it is asked for; --list only shows them.

Exit codes: 0 written and verified, 2 not written or not to its end, 130 interrupted."""


def _media_words() -> list[tuple[str, str]]:
    """For the Tab key."""
    return [(medium.path, f"{medium.model}, {show.size(medium.size_bytes)}") for medium in _removable()]


COMPLETE = {"device": _media_words}


def run(words: list[str]) -> int:
    """One command. Raises SystemExit for wrong usage, UpdateError for what goes wrong."""
    options = parser().parse_args(words)
    if options.list:
        return _list(options)
    if options.image is None:
        parser().error("IMAGE is missing")
    if options.device is not None and options.to_file is not None:
        parser().error("DEVICE and --to-file: one of them")
    image = source.open_image(options.image)
    block_map = _bmap(options)
    needed = max(image.needed_bytes, image.size_bytes, block_map.image_bytes if block_map else 0)
    if block_map is not None and image.size_bytes:
        plan.check_size(block_map, image.size_bytes)
    wanted = _wanted(options)
    if wanted and image.is_seekable:
        from .data_partition import Card

        with image.plain() as plain:
            Card(plain, image.path.name).check(wanted)
    if options.to_file is not None:
        opened = _to_file(options, image, needed)
    else:
        opened = _to_device(options, needed)
    return _write(options, image, block_map, wanted, opened)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="ota flash", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = root.add_argument
    add("image", metavar="IMAGE", nargs="?", type=given_path, help="image of a card")
    add(
        "device",
        metavar="DEVICE",
        nargs="?",
        type=given_path,
        help="whole medium, as /dev/sdX or /dev/mmcblkX",
    )
    add("--list", action="store_true", help="list removable media: size, model, what is on them")
    add(
        "--to-file",
        metavar="FILE",
        type=given_path,
        help="write to a file instead: the card of a virtual board",
    )
    add("-y", "--yes", action="store_true", help="do not ask; DEVICE must be given")
    add("--bmap", metavar="FILE", type=given_path, help="block map; default: the one beside the image")
    add("--no-bmap", action="store_true", help="write every block")
    add("--json", action="store_true", help="say it as one JSON document")
    group = root.add_argument_group("for this device, into the data partition")
    add = group.add_argument
    add("--device-type", metavar="NAME", default="", help="what the device calls itself")
    add("--server-url", metavar="URL", default="", help="update server; the image must not name one")
    add(
        "--server-certificate",
        metavar="FILE",
        type=given_path,
        help="certificate (PEM) the server is known by",
    )
    add(
        "--tenant-token",
        metavar="FILE",
        type=given_path,
        help="file with the token of the tenant at a hosted server",
    )
    add(
        "--device-key",
        metavar="FILE",
        type=given_path,
        help="private key (PEM) that the server accepted before",
    )
    add(
        "--host-keys",
        metavar="DIR",
        type=given_path,
        help="SSH host keys, named as OpenSSH or dropbear name them",
    )
    add("--wifi", metavar="SSID", default="", help="Wi-Fi network; its password is asked for")
    text = f"file with its password; or {wifi.VARIABLE} in the environment"
    add("--wifi-password-file", metavar="FILE", type=given_path, help=text)
    add("--wifi-open", action="store_true", help="the network has no password")
    add("--wifi-country", metavar="CC", default="", help="where it is: two letters; 5 GHz needs it")
    return root


def _bmap(options: argparse.Namespace) -> Bmap | None:
    if options.no_bmap:
        return None
    path = options.bmap or bmap.beside(options.image)
    return bmap.load(path) if path is not None else None


def _wanted(options: argparse.Namespace) -> Provision:
    """What the options put into the data partition; false if that is nothing."""
    from . import provision  # with cryptography, which takes 80 ms to load

    wanted = provision.Provision()
    if options.device_type:
        wanted.device_type = provision.device_type(options.device_type)
    if options.server_url:
        wanted.server_url = provision.server_url(options.server_url)
    if options.server_certificate:
        wanted.server_certificate = provision.certificate(options.server_certificate)
    if options.tenant_token:
        wanted.tenant_token = provision.one_line(options.tenant_token, "--tenant-token")
    if options.device_key:
        wanted.device_key = provision.device_key(options.device_key)
    if options.host_keys:
        wanted.host_keys = provision.host_keys(options.host_keys)
    if options.wifi:
        if options.wifi_open and options.wifi_password_file:
            raise FlashError("--wifi-open and --wifi-password-file: one of them")
        secret = "" if options.wifi_open else wifi.password(options.wifi, options.wifi_password_file)
        if not secret and not options.wifi_open:
            raise FlashError("the Wi-Fi password is empty", hint="--wifi-open if the network has none")
        wanted.wifi = wifi.configuration(options.wifi, secret, options.wifi_country)
    elif options.wifi_password_file or options.wifi_open or options.wifi_country:
        raise FlashError("--wifi SSID is missing", hint="the other --wifi options are about that network")
    return wanted


# Where to


def _list(options: argparse.Namespace) -> int:
    system = refuse.running_from()
    present = [(medium, refuse.reasons(medium, system=system)) for medium in _removable()]
    if options.json:
        documents = [
            medium.document() | {"refused_because": [reason.text for reason in reasons]}
            for medium, reasons in present
        ]
        print(json.dumps(documents, indent=2, ensure_ascii=False))
    elif present:
        show.media(present)
    else:
        print("no removable medium is attached")
    return 0


def _removable() -> list[Medium]:
    return [medium for medium in devices.attached() if medium.is_removable]


def _to_device(options: argparse.Namespace, needed: int) -> Callable[[], Target]:
    """Opens the medium that was chosen and agreed to. Raises FlashError if there is none."""
    if options.device is None:
        medium = _choose(options, needed)
    else:
        medium = devices.find(options.device, devices.attached())
    reasons = refuse.reasons(medium, needed, system=refuse.running_from())
    if reasons:
        raise show.refusal(medium, reasons)
    seen = devices.sequence(medium)
    if not options.yes:
        _agree(
            f"Overwrite all of {medium.path}?",
            [
                f"{medium.path}: {medium.model}, {show.size(medium.size_bytes)}, {medium.attachment}",
                *(f"  {line}" for line in show.contents(medium)),
            ],
        )
    return lambda: target.open_device(medium, seen)


def _choose(options: argparse.Namespace, needed: int) -> Medium:
    system = refuse.running_from()
    present = [(medium, refuse.reasons(medium, needed, system=system)) for medium in _removable()]
    fit = [medium for medium, reasons in present if not reasons]
    if options.yes or not sys.stdin.isatty():
        raise FlashError("DEVICE is missing", hint="scripts/ota flash --list shows what is there")
    if not present:
        raise FlashError(
            "no removable medium is attached", hint="put one in; --to-file FILE writes to a file"
        )
    if not fit:
        raise show.refusal(*present[0])
    show.media(present)
    if len(fit) == 1:
        return fit[0]
    print("Which device? ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip()
    for medium in fit:
        if answer in {medium.path, medium.name}:
            return medium
    raise FlashError(f"{answer!r} is none of them", hint=", ".join(medium.path for medium in fit))


def _to_file(options: argparse.Namespace, image: Image, needed: int) -> Callable[[], Target]:
    path: Path = options.to_file
    if path.exists() and path.samefile(image.path):
        raise FlashError(f"{path} is the image itself")
    if path.is_file():
        given = {name: value for name, value in vars(options).items() if isinstance(value, Path)}
        given["bmap"] = options.bmap or bmap.beside(options.image) or options.image
        for name, other in given.items():
            if name != "to_file" and other.is_file() and path.samefile(other):
                raise FlashError(f"{path} would be overwritten: it is given as --{name.replace('_', '-')}")
    if path.is_file() and path.stat().st_size and not options.yes:
        _agree(f"Overwrite {path}?", [f"{path}: a file of {mib(path.stat().st_size)}"])
    return lambda: target.open_file(path, needed)


def _agree(question: str, lines: Sequence[str]) -> None:
    if not sys.stdin.isatty():
        raise FlashError("nobody can be asked whether to overwrite it", hint="--yes goes ahead")
    if not show.ask(question, lines):
        raise FlashError("nothing was written")


# Writing


def _write(
    options: argparse.Namespace,
    image: Image,
    block_map: Bmap | None,
    wanted: Provision,
    opened: Callable[[], Target],
) -> int:
    started = time.monotonic()

    def fill(place: Target) -> None:
        from . import data_partition

        data_partition.fill(place, image.head, wanted)

    with opened() as place:
        try:
            with show.progress(os.path.basename(place.name)) as progress:
                done = writer.flash(image, place, block_map, fill=fill if wanted else None, progress=progress)
        except KeyboardInterrupt:
            print(f"\n{place.name}: interrupted; {target.AGAIN}", file=sys.stderr)
            raise
    seconds = time.monotonic() - started
    given = sorted(key for key, value in vars(wanted).items() if value)
    document = {
        "image": str(image.path),
        "target": place.name,
        "image_bytes": done.image_bytes,
        "written_bytes": done.written_bytes,
        "bmap": block_map.name if block_map else None,
        "verified": True,
        "provisioned": given,
        "seconds": round(seconds, 1),
    }
    if options.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    mapped = f", {mib(done.written_bytes)} of it written by {block_map.name}" if block_map else ""
    print(f"{place.name}: {mib(done.image_bytes)} of {image.path.name}{mapped}, verified, {seconds:.0f} s")
    if given:
        print(f"  into the data partition: {', '.join(given).replace('_', ' ')}")
    return 0
