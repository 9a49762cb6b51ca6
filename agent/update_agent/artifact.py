# SPDX-License-Identifier: Apache-2.0
"""Read an artifact from a stream: version, manifest, signature, header, then the payload's files.

Nothing is stored and nothing is believed early: with keys, the manifest is looked at after its signature was
verified, the header after its checksum; a payload file's checksum is verified at its end. Format:
artifact-v3.md sections 1 to 7.

    reader = Reader(stream, verify_keys=["/etc/mender/artifact-verify-key.pem"])
    print(reader.header.name)
    for file in reader.files():
        while got := file.readinto(view):
            write(view[:got])
"""

from __future__ import annotations

from update_agent import signature
from update_agent.compression import DEFAULT_MEMORY_LIMIT_BYTES, NAMES, decompress
from update_agent.digest import sha256
from update_agent.errors import ArtifactError
from update_agent.header import Header, load_json, read_header
from update_agent.provides import check_depends
from update_agent.tarstream import StreamSource, TarStream, collect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from update_agent.tarstream import Member, Stream

    Verify = Callable[[bytes, bytes, Sequence[str]], str]

__all__ = ["Header", "PayloadFile", "Reader", "check_depends"]

MAX_VERSION_BYTES = 4 << 10
MAX_MANIFEST_BYTES = 1 << 20  # some 8000 payload files
MAX_SIGNATURE_BYTES = 16 << 10
MAX_HEADER_BYTES = 16 << 20  # compressed; held in memory until its checksum is known to be right
DRAIN_BYTES = 256 << 10

_HEADER = "header.tar"
_DATA = "data/0000.tar"
_DATA_FILE = "data/0000/"
_HEX = frozenset("0123456789abcdef")
_IN_FILE_NAMES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.,")
_BLANKS = frozenset(" \t\n\r\f\v")


class PayloadFile:
    """One file of the payload while it passes by: name, size, the bytes once, the checksum at the end.

    `readinto` and `read` hash and verify on the way. A data path with threads may call `fill` in one, `hash`
    with the same bytes in order in another, and `verify` after both.
    """

    def __init__(self, tar: TarStream, member: Member, digest: str, compression: str) -> None:
        self.name = member.name
        self.size = member.size
        self.compression = compression
        self.expected_digest = digest
        """SHA-256 in hex, from the manifest."""
        self.verified = False
        self._tar = tar
        self._hash = sha256()
        self._hashed = 0

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what was hashed so far: of the whole file at its end."""
        return self._hash.hexdigest()

    def read(self, n: int) -> bytes:
        """n bytes, fewer only at the end, b"" after it. Raises ArtifactError if the checksum is wrong."""
        if not self._tar.left:
            self.readinto(memoryview(b""))
        return collect(min(n, self._tar.left), self.readinto)

    def readinto(self, view: memoryview, /) -> int:
        """Fill the view, less only at the end; 0 after it.

        Raises ArtifactError when the end is reached and the checksum is wrong: then nothing of the file
        may be trusted.
        """
        got = self.fill(view)
        self.hash(view[:got])
        if self._tar.left == 0:
            self.verify()
        return got

    def fill(self, view: memoryview, /) -> int:
        """Like `readinto`, without hashing and verifying: the caller owes both."""
        done = 0
        while done < len(view) and self._tar.left:
            done += self._tar.readinto(view[done:])
        return done

    def hash(self, view: memoryview | bytes, /) -> None:
        """Take the next bytes of the file into the checksum."""
        self._hash.update(view)
        self._hashed += len(view)

    def verify(self) -> str:
        """SHA-256 in hex. Raises ArtifactError unless all was hashed and the checksum is the manifest's."""
        digest = self._hash.hexdigest()
        if self._hashed != self.size:
            raise ArtifactError(f"payload file {self.name}: {self._hashed} of {self.size} bytes were hashed")
        if digest != self.expected_digest:
            raise _wrong_checksum(f"payload file {self.name}", self.expected_digest, digest)
        self.verified = True
        return digest

    def finish(self) -> None:
        """Read what nobody read, and verify."""
        if self._tar.left:
            view = memoryview(bytearray(DRAIN_BYTES))
            while self.readinto(view):
                pass
        if not self.verified:
            self.verify()


class Reader:
    """An artifact on a stream that has `read(n)`, perhaps `readinto`. `header` is there, verified, at once.

    verify_keys: public keys; with any, the artifact must be signed by one of them; `verified_by` tells which.
    `digests`: the payload files the manifest lists and their SHA-256 in hex. `compression`: none, gzip, xz or
    zstd, of the payload; known once `files` has begun.
    memory_limit_bytes bounds what a decompressor may need. Raises ArtifactError; errors of the stream pass.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        verify_keys: Sequence[str] = (),
        verify: Verify = signature.check,
        memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
    ) -> None:
        self._memory_limit = memory_limit_bytes
        self._outer = TarStream(StreamSource(stream), "the artifact")
        self.verified_by: str | None = None
        self.compression = "none"
        version = self._member("version", self._outer.next())
        version_bytes = self._outer.read_whole(version, MAX_VERSION_BYTES)
        _check_version(version_bytes)
        manifest = self._outer.read_whole(self._member("manifest", self._outer.next()), MAX_MANIFEST_BYTES)

        member = self._outer.next()
        signed = member is not None and member.name == "manifest.sig"
        if member is not None and signed:
            signature_text = self._outer.read_whole(member, MAX_SIGNATURE_BYTES)
            if verify_keys:
                self.verified_by = verify(manifest, signature_text, verify_keys)
            member = self._outer.next()
        elif verify_keys:
            raise ArtifactError(
                "the artifact is not signed, but ArtifactVerifyKey is set",
                hint="sign it: mender-artifact sign ARTIFACT -k PRIVATE_KEY",
            )
        # Only now is the manifest looked at: with keys, nothing of an unsigned one is.
        self._header_digest, self._files = _parse_manifest(manifest, version_bytes)
        self.digests = dict(self._files)
        self.header = self._read_header(member, signed)

    def files(self) -> Iterator[PayloadFile]:
        """The payload's files, in archive order; once. What the caller leaves unread is read and verified.

        Exhausting this is part of installing: the end of the artifact is checked after the last file.
        """
        member = self._outer.next()
        if member is None:
            if self.header.payload_type is not None:
                raise ArtifactError("the artifact ends without its payload data/0000.tar")
        else:
            suffix = _suffix(member.name, _DATA)
            if suffix is None:
                raise self._unexpected(member, "data/0000.tar (with .gz, .xz, .zst or without)")
            self.compression = NAMES[suffix]
            source = decompress(self._outer, suffix, member.name, self._memory_limit)
            yield from self._payload(TarStream(source, member.name))
            if (member := self._outer.next()) is not None:
                raise self._unexpected(member, "the end")
        if self._files:
            raise ArtifactError(
                f"the payload lacks {', '.join(sorted(self._files))}, which the manifest lists"
            )
        self._outer.finish()

    def _payload(self, tar: TarStream) -> Iterator[PayloadFile]:
        while (member := tar.next()) is not None:
            if self.header.payload_type is None:
                raise ArtifactError(f"the artifact has no payload type but a payload file {member.name}")
            digest = self._files.pop(member.name, None)
            if digest is None:
                raise ArtifactError(
                    f"payload file {member.name!r} is not listed in the manifest, or comes twice",
                    hint="names in the payload are plain file names",
                )
            file = PayloadFile(tar, member, digest, self.compression)
            yield file
            file.finish()
        tar.finish()

    def _read_header(self, member: Member | None, signed: bool) -> Header:
        member = self._expected(member, "header.tar")
        suffix = _suffix(member.name, _HEADER)
        if suffix is None:
            raise self._unexpected(member, "header.tar (with .gz, .xz, .zst or without)")
        packed = self._outer.read_whole(member, MAX_HEADER_BYTES)
        digest = sha256(packed).hexdigest()
        if digest != self._header_digest:
            raise _wrong_checksum(member.name, self._header_digest, digest)
        source = decompress(_Bytes(packed), suffix, member.name, self._memory_limit)
        return read_header(TarStream(source, member.name), signed=signed)

    def _member(self, name: str, member: Member | None) -> Member:
        member = self._expected(member, name)
        if member.name != name:
            hint = "is this a Mender artifact?" if name == "version" else ""
            raise ArtifactError(f"the artifact has {member.name!r} where {name} belongs", hint=hint)
        return member

    def _expected(self, member: Member | None, name: str) -> Member:
        if member is None:
            raise ArtifactError(f"the artifact ends where {name} belongs")
        return member

    def _unexpected(self, member: Member, expected: str) -> ArtifactError:
        name = member.name
        if name in ("manifest-augment", "manifest-augment.sig") or name.startswith("header-augment.tar"):
            return ArtifactError(
                f"the artifact is augmented ({name}), which is not supported",
                hint="write it without --augment-… options",
            )
        if name.startswith("data/") and name[9:13] == ".tar" and expected == "the end":
            return ArtifactError(f"the artifact has a second payload {name}; one is supported")
        return ArtifactError(f"the artifact has {name!r} where {expected} belongs")


class _Bytes:
    """Bytes in memory as a source."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readinto(self, view: memoryview, /) -> int:
        got = min(len(view), len(self._data))
        view[:got] = self._data[:got]
        self._data = self._data[got:]
        return got


def _suffix(name: str, base: str) -> str | None:
    """What follows the base in a member's name, if it is a compression we know."""
    suffix = name.removeprefix(base)
    return suffix if name.startswith(base) and suffix in NAMES else None


def _check_version(data: bytes) -> None:
    document = load_json("version", data)
    if not isinstance(document, dict) or document.get("format") != "mender":
        raise ArtifactError("the file is not a Mender artifact: its version member names another format")
    version = document.get("version")
    if type(version) is int and version in (1, 2):
        raise ArtifactError(
            f"the artifact has the old format version {version}; only version 3 can be installed",
            hint="write it again with mender-artifact 3 or later",
        )
    if type(version) is not int or version != 3:
        raise ArtifactError(
            f"the artifact has format version {version!r}; only version 3 can be installed",
            hint="does it need a newer update-agent?",
        )


def _parse_manifest(data: bytes, version: bytes) -> tuple[str, dict[str, str]]:
    """The header's digest, and those of the payload files by name. The version member is checked here."""
    digests: dict[str, str] = {}
    header = ""
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"the artifact's manifest is not UTF-8 at byte {error.start}") from None
    files: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        digest, name = line[:64], line[66:]
        if not (
            len(digest) == 64
            and _HEX.issuperset(digest)
            and line[64:66] == "  "
            and 0 < len(name) <= 100
            and _BLANKS.isdisjoint(name)
        ):
            raise ArtifactError(
                f"line {number} of the artifact's manifest is not '<sha256>  <name>': {line[:200]!r}"
            )
        if name in digests:
            raise ArtifactError(f"the artifact's manifest lists {name} twice")
        digests[name] = digest
        if _suffix(name, _HEADER) is not None:
            if header:
                raise ArtifactError("the artifact's manifest lists two headers")
            header = digest
        elif name.startswith(_DATA_FILE):
            files[check_file_name(name.removeprefix(_DATA_FILE))] = digest
        elif name != "version":
            raise ArtifactError(f"the artifact's manifest lists {name!r}, which is no part of an artifact")
    if "version" not in digests:
        raise ArtifactError("the artifact's manifest does not list version")
    if not header:
        raise ArtifactError("the artifact's manifest does not list header.tar")
    found = sha256(version).hexdigest()
    if found != digests["version"]:
        raise _wrong_checksum("version", digests["version"], found)
    return header, files


def check_file_name(name: str) -> str:
    """The name of a payload file, if it may have it; ArtifactError otherwise."""
    if not name or not _IN_FILE_NAMES.issuperset(name) or name in (".", ".."):
        raise ArtifactError(
            f"the artifact has a payload file named {name!r}",
            hint="letters, digits, and _ - . , are accepted in names",
        )
    return name


def _wrong_checksum(what: str, expected: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"wrong checksum of {what}: SHA-256 is {found}, the manifest says {expected}",
        hint="the artifact is damaged; download or copy it again",
    )
