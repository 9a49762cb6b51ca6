# SPDX-License-Identifier: Apache-2.0
"""Artifacts that no device may take: how each is made, and the reason it is refused for.

`CASES` has all of them; the other tables are its parts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable

from tests.support.artifacts import (
    COMPRESS,
    END,
    Artifact,
    Entry,
    header,
    long_name,
    padded,
    pax,
    replace,
    tar,
)

Case = tuple[Callable[[], bytes], str]


def swapped(first: str, second: str) -> Callable[[list[Entry]], list[Entry]]:
    def swap(members: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in members]
        a, b = names.index(first), names.index(second)
        members[a], members[b] = members[b], members[a]
        return members

    return swap


def outer(change: Callable[[list[Entry]], list[Entry]], **fields: object) -> bytes:
    return tar(change(Artifact(**fields).members()))  # type: ignore[arg-type]


def with_payload(*entries: Entry, compression: str = "", **fields: object) -> bytes:
    return Artifact(data_entries=list(entries), compression=compression, **fields).build()  # type: ignore[arg-type]


PAYLOAD = b"payload " * 100
FILE = Entry("payload.bin", PAYLOAD)

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the artifact is cut off at byte 0"),
    "text": (lambda: b"<html>404</html>" * 100, "is not a tar archive at byte 0 (is this an artifact"),
    "empty tar": (lambda: END, "ends where version belongs"),
    "other tar": (
        lambda: tar([Entry("etc/passwd", b"x")]),
        "has 'etc/passwd' where version belongs (is this",
    ),
    "endless version": (
        lambda: Entry("version", claimed=4097).encode(),
        "has version of 4097 bytes; at most 4096",
    ),
    "version 1": (
        lambda: Artifact(version=b'{"format":"mender","version":1}').build(),
        "old format version 1",
    ),
    "version 2": (
        lambda: Artifact(version=b'{"format":"mender","version":2}').build(),
        "write it again with",
    ),
    "version 4": (
        lambda: Artifact(version=b'{"format":"mender","version":4}').build(),
        "format version 4; only",
    ),
    "version '3'": (
        lambda: Artifact(version=b'{"format":"mender","version":"3"}').build(),
        "version '3'; only",
    ),
    "version true": (lambda: Artifact(version=b'{"format":"mender","version":true}').build(), "version True"),
    "version missing": (lambda: Artifact(version=b'{"format":"mender"}').build(), "version None"),
    "other format": (lambda: Artifact(version=b'{"format":"x","version":3}').build(), "names another format"),
    "version no object": (lambda: Artifact(version=b"3").build(), "names another format"),
    "version no JSON": (lambda: Artifact(version=b"{").build(), "version is not valid JSON"),
    "version not UTF-8": (lambda: Artifact(version=b'{"\xff":1}').build(), "version is not valid JSON"),
    "version deeply nested": (lambda: Artifact(version=b"[" * 4000).build(), "version is not valid JSON"),
    "version twice": (lambda: outer(lambda m: [m[0], *m]), "has 'version' where manifest belongs"),
    "version changed": (
        lambda: outer(lambda m: replace(m, "version", data=b'{"format":"mender","version":3} ')),
        "wrong checksum of version",
    ),
    "manifest missing": (lambda: outer(lambda m: [m[0], *m[2:]]), "has 'header.tar' where manifest belongs"),
    "manifest before version": (lambda: outer(swapped("version", "manifest")), "'manifest' where version"),
    "endless manifest": (
        lambda: outer(lambda m: replace(m, "manifest", claimed=10 << 28)),
        "has manifest of 2684354560 bytes; at most 1048576",
    ),
    "endless signature": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest.sig", claimed=1 << 20), *m[2:]]),
        "manifest.sig of 1048576 bytes",
    ),
    "two signatures": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest.sig"), Entry("manifest.sig"), *m[2:]]),
        "has 'manifest.sig' where header.tar",
    ),
    "manifest empty": (
        lambda: Artifact(edit_manifest=lambda _: "").build(),
        "line 1 of the artifact's manifest",
    ),
    "manifest not UTF-8": (lambda: Artifact(edit_manifest=lambda _: b"\xff").build(), "not UTF-8 at byte 0"),
    "manifest upper case": (lambda: Artifact(edit_manifest=str.upper).build(), "is not '<sha256>  <name>'"),
    "manifest one space": (
        lambda: Artifact(edit_manifest=lambda text: text.replace("  ", " ")).build(),
        "line 1 of the artifact's manifest is not",
    ),
    "manifest CR LF": (
        lambda: Artifact(edit_manifest=lambda text: text.replace("\n", "\r\n")).build(),
        "line 1 of the artifact's manifest is not",
    ),
    "manifest empty line": (
        lambda: Artifact(edit_manifest=lambda text: text + "\n").build(),
        "line 4 of the",
    ),
    "manifest name too long": (
        lambda: Artifact(
            edit_manifest=lambda text: text + "0" * 64 + "  data/0000/" + "n" * 91 + "\n"
        ).build(),
        "line 4 of the artifact's manifest is not",
    ),
    "manifest without version": (
        lambda: Artifact(edit_manifest=lambda text: "".join(text.splitlines(True)[:2])).build(),
        "does not list version",
    ),
    "manifest without header": (
        lambda: Artifact(
            edit_manifest=lambda text: text.splitlines(True)[0] + text.splitlines(True)[2]
        ).build(),
        "does not list header.tar",
    ),
    "manifest entry twice": (
        lambda: Artifact(edit_manifest=lambda text: text + text.splitlines(True)[2]).build(),
        "lists version twice",
    ),
    "manifest with two headers": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  header.tar.gz\n").build(),
        "lists two headers",
    ),
    "manifest with a strange file": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  etc/passwd\n").build(),
        "lists 'etc/passwd', which is no part",
    ),
    "manifest with a second payload": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  data/0001/x\n").build(),
        "lists 'data/0001/x', which is no part",
    ),
    "manifest with dot-dot": (lambda: Artifact(files={"..": b""}).build(), "payload file named '..'"),
    "manifest with a path": (lambda: Artifact(files={"a/b": b""}).build(), "payload file named 'a/b'"),
    "manifest with a strange name": (
        lambda: Artifact(files={"a;b": b""}).build(),
        "payload file named 'a;b'",
    ),
    "manifest with a non-ASCII name": (lambda: Artifact(files={"\u00e4": b""}).build(), "payload file named"),
    "augmented manifest": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest-augment", b"x"), *m[2:]]),
        "is augmented (manifest-augment), which is not supported",
    ),
    "augmented header": (
        lambda: outer(lambda m: [*m[:3], Entry("header-augment.tar.gz", b"x"), *m[3:]]),
        "is augmented (header-augment.tar.gz), which is not supported",
    ),
    "header missing": (lambda: outer(lambda m: [*m[:2], *m[3:]]), "has 'data/0000.tar' where header.tar"),
    "header twice": (lambda: outer(lambda m: [*m[:3], *m[2:]]), "has 'header.tar' where data/0000.tar"),
    "header after payload": (lambda: outer(swapped("header.tar", "data/0000.tar")), "where header.tar"),
    "header of another compression": (
        lambda: outer(lambda m: replace(m, "header.tar", name="header.tar.bz2")),
        "has 'header.tar.bz2' where header.tar (with .gz, .xz, .zst or without) belongs",
    ),
    "header compressed otherwise than named": (
        lambda: outer(lambda m: replace(m, "header.tar", name="header.tar.gz")),
        "header.tar.gz cannot be decompressed",
    ),
    "header changed": (
        lambda: outer(lambda m: replace(m, "header.tar", data=m[2].data + bytes(512))),
        "wrong checksum of header.tar: SHA-256 is",
    ),
    "header of 10 GiB": (
        lambda: tar(
            [
                *Artifact().members()[:2],
                Entry("", head=header("header.tar", b"\x80" + (10 << 30).to_bytes(11, "big"))),
            ]
        ),
        "has header.tar of 10737418240 bytes; at most 16777216",
    ),
    "payload missing": (lambda: outer(lambda m: m[:3]), "ends without its payload data/0000.tar"),
    "payload of another compression": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", name="data/0000.tar.lz4")),
        "where data/0000.tar (with",
    ),
    "payload with another number": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", name="data/0001.tar")),
        "where data/0000.tar (with",
    ),
    "second payload": (
        lambda: outer(lambda m: [*m, Entry("data/0001.tar", m[3].data)]),
        "has a second payload data/0001.tar",
    ),
    "same payload again": (lambda: outer(lambda m: [*m, m[3]]), "has a second payload data/0000.tar"),
    "member after the payload": (
        lambda: outer(lambda m: [*m, Entry("x", b"x")]),
        "has 'x' where the end belongs",
    ),
    "bytes after the end": (lambda: Artifact().build() + b"x", "the artifact goes on after its end"),
    "artifact after artifact": (lambda: Artifact().build() * 2, "two files joined together?"),
    "link in the outer tar": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", kind=b"2")),
        "the artifact has 'data/0000.tar', which is a symbolic link",
    ),
    "payload changed": (
        lambda: with_payload(Entry("payload.bin", PAYLOAD[:-1] + b"x")),
        "wrong checksum of payload file payload.bin: SHA-256 is",
    ),
    "payload shorter": (
        lambda: with_payload(Entry("payload.bin", PAYLOAD[:-1])),
        "wrong checksum of payload file",
    ),
    "payload file empty": (lambda: with_payload(Entry("payload.bin")), "wrong checksum of payload file"),
    "payload file missing": (
        with_payload,
        "the payload lacks payload.bin, which the manifest lists",
    ),
    "payload file not listed": (
        lambda: with_payload(FILE, Entry("x", b"x")),
        "payload file 'x' is not listed",
    ),
    "payload file twice": (
        lambda: with_payload(FILE, FILE),
        "'payload.bin' is not listed in the manifest, or comes",
    ),
    "payload file with ./": (lambda: with_payload(Entry("./payload.bin", PAYLOAD)), "plain file names"),
    "payload file by number": (
        lambda: with_payload(Entry("data/0000/payload.bin", PAYLOAD)),
        "plain file names",
    ),
    "payload link": (
        lambda: with_payload(
            Entry("payload.bin", head=header("payload.bin", 0, kind=b"2", link=b"/dev/sda"))
        ),
        "data/0000.tar has 'payload.bin', which is a symbolic link",
    ),
    "payload device": (lambda: with_payload(Entry("payload.bin", kind=b"4")), "a block device"),
    "payload absolute": (lambda: with_payload(Entry("/etc/passwd", b"x")), "names must stay inside"),
    "payload dot-dot": (lambda: with_payload(Entry("../payload.bin", PAYLOAD)), "names must stay inside"),
    "payload dot-dot by PAX": (
        lambda: with_payload(Entry("", head=pax({"path": "../../etc/passwd"})), FILE),
        "names must stay inside",
    ),
    "payload claims 10 GiB": (
        lambda: with_payload(
            Entry("", PAYLOAD, head=header("payload.bin", b"\x80" + (10 << 30).to_bytes(11, "big")))
        ),
        "data/0000.tar is cut off at byte 2560, in payload.bin",
    ),
    "payload archive goes on": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", data=m[3].data + b"x" * 512)),
        "data/0000.tar goes on after its end",
    ),
    "payload archive has no end": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", data=m[3].data[:-1024])),
        "the header block at byte 1536",
    ),
    "junk after compressed payload": (
        lambda: outer(
            lambda m: replace(m, "data/0000.tar.gz", data=m[3].data + b"junk" * 10), compression=".gz"
        ),
        "data/0000.tar.gz cannot be decompressed",
    ),
    "zeros after compressed payload": (
        lambda: outer(
            lambda m: replace(m, "data/0000.tar.gz", data=gzip.compress(tar([FILE]) + bytes(2 << 20))),
            compression=".gz",
        ),
        "more than 1048576 bytes of padding",
    ),
    "empty payload with a file": (
        lambda: tar([*Artifact(payload_type=None).members()[:3], Entry("data/0000.tar", tar([FILE]))]),
        "has no payload type but a payload file payload.bin",
    ),
    "empty payload with a listed file": (
        lambda: tar(Artifact(payload_type=None).members()[:3]),
        "the payload lacks payload.bin",
    ),
}

# --- the documents and members of the header ---

INFO = Artifact().info()
DEEP = b'{"payloads":' + b"[" * 100_000


def info(**fields: object) -> dict[str, object]:
    return {key: value for key, value in (INFO | fields).items() if value is not ...}


HEADER_INFO = {
    "no JSON": (b"x", "header-info is not valid JSON"),
    "empty": (b"", "header-info is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "header-info is not valid JSON"),
    "UTF-16": (json.dumps(INFO).encode("utf-16"), "header-info is not valid JSON"),
    "two documents": (json.dumps(INFO).encode() * 2, "header-info is not valid JSON"),
    "NaN": (b'{"payloads": NaN}', "NaN is no JSON number"),
    "deeply nested": (DEEP, "header-info is not valid JSON"),
    "endless number": (b'{"payloads": ' + b"1" * 10_000 + b"}", "header-info is not valid JSON"),
    "a list": (b"[]", "header-info is not a JSON object but a list of 0"),
    "no payloads": (info(payloads=...), "'payloads' in the artifact's header-info is missing"),
    "payloads null": (info(payloads=None), "'payloads' in the artifact's header-info is null"),
    "no payload": (info(payloads=[]), "is a list of 0; expected a list with exactly one payload"),
    "two payloads": (info(payloads=[{"type": "a"}, {"type": "b"}]), "is a list of 2; expected"),
    "payload a string": (info(payloads=["module"]), "header-info payloads is not a JSON object"),
    "payload without type": (info(payloads=[{}]), "'type' in the artifact's header-info payloads is missing"),
    "payload type empty": (info(payloads=[{"type": ""}]), "is the string ''; expected a string with text"),
    "payload type number": (info(payloads=[{"type": 1}]), "is a number; expected"),
    "payload type surrogate": (info(payloads=[{"type": "\ud800"}]), "is not valid Unicode"),
    "name with a NUL": (
        info(artifact_provides={"artifact_name": "a\0b"}),
        "'artifact_name' in the artifact's header-info artifact_provides is not valid Unicode, or has a NUL",
    ),
    "no provides": (
        info(artifact_provides=...),
        "'artifact_provides' in the artifact's header-info is missing",
    ),
    "provides a list": (info(artifact_provides=[]), "is a list of 0; expected an object"),
    "no name": (
        info(artifact_provides={}),
        "'artifact_name' in the artifact's header-info artifact_provides is",
    ),
    "empty name": (info(artifact_provides={"artifact_name": ""}), "expected a string with text"),
    "name number": (info(artifact_provides={"artifact_name": 7}), "is a number"),
    "name surrogate": (info(artifact_provides={"artifact_name": "\udfff"}), "is not valid Unicode"),
    "group null": (
        info(artifact_provides={"artifact_name": "n", "artifact_group": None}),
        "is null; expected a string",
    ),
    "no depends": (info(artifact_depends=...), "'artifact_depends' in the artifact's header-info is missing"),
    "no device type": (
        info(artifact_depends={}),
        "'device_type' in the artifact's header-info artifact_depends is",
    ),
    "empty device types": (
        info(artifact_depends={"device_type": []}),
        "expected a list with at least one string",
    ),
    "device type a string": (info(artifact_depends={"device_type": "a"}), "expected a list of strings"),
    "device types of numbers": (info(artifact_depends={"device_type": [1]}), "expected a list of strings"),
    "empty names": (
        info(artifact_depends={"device_type": ["a"], "artifact_name": []}),
        "expected a list with at least one string",
    ),
    "empty groups": (
        info(artifact_depends={"device_type": ["a"], "artifact_group": []}),
        "expected a list with at least one string",
    ),
}

TYPE_INFO = {
    "no JSON": (b"", "type-info is not valid JSON"),
    "null": (b"null", "type-info is not a JSON object but null"),
    "no type": ({}, "'type' in the artifact's type-info is missing; expected the payload type 'module'"),
    "other type": (
        {"type": "other"},
        "is the string 'other'; expected the payload type 'module' of header-info",
    ),
    "type null": ({"type": None}, "is null; expected the payload type"),
    "provides a list": ({"type": "module", "artifact_provides": []}, "expected an object"),
    "provides a number": (
        {"type": "module", "artifact_provides": {"a": 1}},
        "'a' in the artifact's type-info",
    ),
    "provides a list inside": ({"type": "module", "artifact_provides": {"a": ["b"]}}, "expected a string"),
    "provides a surrogate key": ({"type": "module", "artifact_provides": {"\ud800": "b"}}, "valid Unicode"),
    "depends null": ({"type": "module", "artifact_depends": None}, "is null; expected an object"),
    "depends a number": ({"type": "module", "artifact_depends": {"a": 1}}, "expected a list of strings"),
    "depends nothing": ({"type": "module", "artifact_depends": {"a": []}}, "with at least one string"),
    "depends in conflict": (
        {"type": "module", "artifact_depends": {"device_type": "other"}},
        "nothing can satisfy the artifact: header-info asks for device_type virt64, type-info for other",
    ),
    "clears null": (
        {"type": "module", "clears_artifact_provides": None},
        "is null; expected a list of strings",
    ),
    "clears a string": ({"type": "module", "clears_artifact_provides": "*"}, "expected a list of strings"),
}

HEAD = Entry("header-info", json.dumps(INFO).encode())
TYPE = Entry("headers/0000/type-info", b'{"type":"module"}')
META = Entry("headers/0000/meta-data", b"{}")
SCRIPT = Entry("scripts/ArtifactInstall_Enter_10", b"#!/bin/sh\n")

HEADER_MEMBERS = {
    "nothing": ([], "header has its end where header-info belongs"),
    "no header-info": ([TYPE], "has 'headers/0000/type-info' where header-info belongs"),
    "no type-info": ([HEAD], "has its end where headers/0000/type-info belongs"),
    "scripts first": ([SCRIPT, HEAD, TYPE], "where header-info belongs"),
    "scripts last": ([HEAD, TYPE, SCRIPT], "where the end belongs"),
    "scripts before meta-data": ([HEAD, TYPE, SCRIPT, META], "where the end belongs"),
    "meta-data first": ([HEAD, META, TYPE], "where headers/0000/type-info belongs"),
    "header-info twice": ([HEAD, HEAD, TYPE], "where headers/0000/type-info belongs"),
    "type-info twice": ([HEAD, TYPE, TYPE], "where the end belongs"),
    "meta-data twice": ([HEAD, TYPE, META, META], "where the end belongs"),
    "second index": ([HEAD, TYPE, META, Entry("headers/0001/type-info", b"{}")], "where the end belongs"),
    "other index": ([HEAD, Entry("headers/0001/type-info", b"{}")], "where headers/0000/type-info belongs"),
    "checksums of version 2": ([HEAD, TYPE, Entry("headers/0000/files", b"{}")], "where the end belongs"),
    "script twice": ([HEAD, SCRIPT, SCRIPT, TYPE], "has the state script ArtifactInstall_Enter_10 twice"),
    "script link": ([HEAD, Entry(SCRIPT.name, kind=b"2"), TYPE], "which is a symbolic link"),
    "header-info too large": ([Entry("header-info", b" " * (1 << 20) + b"x")], "at most 1048576"),
    "type-info too large": ([HEAD, Entry(TYPE.name, b" " * (1 << 20) + b"x")], "at most 1048576"),
    "meta-data too large": ([HEAD, TYPE, Entry(META.name, b" " * (1 << 20) + b"x")], "at most 1048576"),
    "too many scripts": (
        [HEAD, *(Entry(f"scripts/ArtifactInstall_Enter_10_{number}") for number in range(1001)), TYPE],
        "more than 1000 state scripts",
    ),
}


# --- the same in each of the three archives ---


def raw_header(packed: bytes, suffix: str = "") -> bytes:
    """An artifact whose header member is these bytes, with the right checksum in the manifest."""
    made = Artifact(header_compression=suffix)
    name = f"header.tar{suffix}"
    members = made.members()
    digest = hashlib.sha256(members[2].data).hexdigest().encode()
    manifest = members[1].data.replace(digest, hashlib.sha256(packed).hexdigest().encode())
    return tar(replace(replace(members, name, data=packed), "manifest", data=manifest))


def raw_payload(packed: bytes, suffix: str = "") -> bytes:
    """An artifact whose payload member is these bytes."""
    return tar(replace(Artifact(compression=suffix).members(), f"data/0000.tar{suffix}", data=packed))


TEN_GIB = b"\x80" + (10 << 30).to_bytes(11, "big")


def huge(name: str) -> Entry:
    """A member that claims 10 GiB and has nothing of it."""
    return Entry("", head=header(name, TEN_GIB))


WHERE: dict[str, Callable[[Entry], bytes]] = {
    "outer": lambda entry: tar([entry, *Artifact().members()]),
    "header": lambda entry: raw_header(tar([HEAD, entry, TYPE])),
    "payload": lambda entry: raw_payload(tar([entry, FILE])),
}
KINDS = {
    "hard link": b"1",
    "symbolic link": b"2",
    "character device": b"3",
    "block device": b"4",
    "directory": b"5",
    "FIFO": b"6",
    "contiguous file": b"7",
    "sparse file": b"S",
}
ODD_NAMES = {
    "absolute": (header("/etc/passwd", 0), "names must stay inside"),
    "dot-dot": (header("../x", 0), "names must stay inside"),
    "dot-dot inside": (header("a/../../x", 0), "names must stay inside"),
    "dot-dot at the end": (header("a/..", 0), "names must stay inside"),
    "absolute by prefix": (header("passwd", 0, prefix=b"/etc"), "names must stay inside"),
    "absolute by long name": (long_name("/etc/passwd") + header("x", 0), "names must stay inside"),
    "dot-dot by PAX": (pax({"path": "../x"}) + header("x", 0), "names must stay inside"),
    "not UTF-8": (header(b"\xff\xfe", 0), "has a name that is not UTF-8"),
    "not UTF-8 by long name": (
        header("././@LongLink", 3, kind=b"L", magic=b"ustar  \0") + padded(b"\xff\xfe\0") + header("x", 0),
        "has a name that is not UTF-8",
    ),
    "no name": (header("", 0), "names must stay inside"),
    "endless extension headers": (
        pax({"comment": "x"}, kind=b"g") * 100 + header("x", 0),
        "extension headers",
    ),
    "a 10 GiB PAX header": (
        header("x", b"\x80" + (10 << 30).to_bytes(11, "big"), kind=b"x"),
        "of 10737418240",
    ),
}
EVERYWHERE: dict[str, Case] = {
    **{
        f"{where}: {name}": (lambda make=make, kind=kind: make(Entry("x", kind=kind)), f"which is a {name}")
        for where, make in WHERE.items()
        for name, kind in KINDS.items()
    },
    **{
        f"{where}: {name}": (lambda make=make, head=head: make(Entry("", head=head)), reason)
        for where, make in WHERE.items()
        for name, (head, reason) in ODD_NAMES.items()
    },
}


# --- archives one after the other, and more than there may be ---


def joined(suffix: str) -> dict[str, Case]:
    pack = COMPRESS[suffix]
    one, other = tar([HEAD, TYPE]), tar([FILE])
    return {
        f"header archive after archive, {suffix}": (
            lambda: raw_header(pack(one) + pack(one), suffix),
            f"header.tar{suffix} goes on after its end",
        ),
        f"header archive split in pieces and one more, {suffix}": (
            lambda: raw_header(pack(one[:700]) + pack(one[700:]) + pack(b"more"), suffix),
            f"header.tar{suffix} goes on after its end",
        ),
        f"payload archive after archive, {suffix}": (
            lambda: raw_payload(pack(other) + pack(other), suffix),
            f"data/0000.tar{suffix} goes on after its end",
        ),
        f"header with endless padding, {suffix}": (
            lambda: raw_header(pack(one + bytes(2 << 20)), suffix),
            "more than 1048576 bytes of padding",
        ),
    }


MEMBERS = ("version", "manifest", "header.tar", "data/0000.tar")
AMOUNTS: dict[str, Case] = {
    **{
        f"{name} claims 10 GiB": (
            lambda number=number, name=name: tar([*Artifact().members()[:number], huge(name)], end=b""),
            f"has {name} of 10737418240 bytes" if name != "data/0000.tar" else "is cut off",
        )
        for number, name in enumerate(MEMBERS)
    },
    **{
        f"{name} in the header claims 10 GiB": (
            lambda before=before, name=name: raw_header(tar([*before, huge(name)], end=b"")),
            f"header unpacks to more than 33554432 bytes (at {name})",
        )
        for name, before in (
            ("header-info", []),
            ("scripts/ArtifactInstall_Enter_10", [HEAD]),
            ("headers/0000/type-info", [HEAD]),
            ("headers/0000/meta-data", [HEAD, TYPE]),
        )
    },
    "endless payload files": (
        lambda: raw_payload(tar([FILE, *(Entry(f"f{number}") for number in range(10_000))])),
        "payload file 'f0' is not listed",
    ),
    "endless lines in the manifest": (
        lambda: Artifact(edit_manifest=lambda text: text * 10_000).build(),
        "has manifest of",
    ),
}

TWO = {"a": b"a" * 700, "b": b"b" * 700}
DIGESTS: dict[str, Case] = {
    **{
        f"wrong checksum of {name}": (
            lambda name=name: Artifact(files=TWO, edit_manifest=lambda text: _wrong(text, name)).build(),
            f"wrong checksum of {shown}",
        )
        for name, shown in {
            "version": "version",
            "header.tar": "header.tar",
            "data/0000/a": "payload file a",
            "data/0000/b": "payload file b",
        }.items()
    },
    "checksums of two files swapped": (
        lambda: Artifact(files=TWO, data_entries=[Entry("a", TWO["b"]), Entry("b", TWO["a"])]).build(),
        "wrong checksum of payload file a",
    ),
}


def _wrong(manifest: str, name: str) -> str:
    """The first digit of the checksum of this member is another."""
    return "".join(
        f"{'0' if line[0] != '0' else '1'}{line[1:]}\n" if line.endswith(f"  {name}") else f"{line}\n"
        for line in manifest.splitlines()
    )


CASES: dict[str, Case] = {
    **HOSTILE,
    **{
        f"header-info: {name}": (lambda doc=doc: Artifact(header_info=doc).build(), reason)  # type: ignore[misc]
        for name, (doc, reason) in HEADER_INFO.items()
    },
    **{
        f"type-info: {name}": (lambda doc=doc: Artifact(type_info=doc).build(), reason)  # type: ignore[misc]
        for name, (doc, reason) in TYPE_INFO.items()
    },
    **{
        f"header members: {name}": (lambda entries=entries: Artifact(header_entries=entries).build(), reason)
        for name, (entries, reason) in HEADER_MEMBERS.items()
    },
    **EVERYWHERE,
    **joined(".gz"),
    **joined(".xz"),
    **joined(".zst"),
    **AMOUNTS,
    **DIGESTS,
}
