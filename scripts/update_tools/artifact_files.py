# SPDX-License-Identifier: Apache-2.0
"""An artifact's payload at the desk: verified while it is read, or unpacked into a directory."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from update_agent.errors import ArtifactError

TYPE_CHECKING = False  # without loading typing
if TYPE_CHECKING:
    from pathlib import Path

    from update_agent.artifact import PayloadFile, Reader

CHUNK_BYTES = 256 << 10  # stays in the processor's cache between decompression and SHA-256
CHUNKS = 4


def check(file: PayloadFile) -> int:
    """Read the file to its end and return its size; it is hashed beside, while more is decompressed.

    Raises ArtifactError if its checksum is wrong.
    """
    free: SimpleQueue[memoryview] = SimpleQueue()
    full: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
    for _ in range(CHUNKS):
        free.put(memoryview(bytearray(CHUNK_BYTES)))

    def hash_chunks() -> None:
        while (chunk := full.get()) is not None:
            view, count = chunk
            file.hash(view[:count])
            free.put(view)

    thread = threading.Thread(target=hash_chunks, daemon=True)
    thread.start()
    try:
        while count := file.fill(view := free.get()):
            full.put((view, count))
    finally:
        full.put(None)
        thread.join()
    file.verify()
    return file.size


def dump(reader: Reader, directory: Path) -> None:
    """Unpack header-info, type-info, meta-data, scripts/ and files/ into a new or empty directory."""
    try:
        directory.mkdir(exist_ok=True)
        if any(directory.iterdir()):
            raise ArtifactError(f"{directory} is not empty")
        _dump(reader, directory)
    except OSError as error:
        hint = "" if directory.parent.is_dir() else f"mkdir -p {directory.parent}"
        raise ArtifactError(f"cannot unpack to {directory}: {error.strerror}", hint=hint) from error


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
    view = memoryview(bytearray(CHUNK_BYTES))
    with path.open("wb", buffering=0) as target:
        while got := file.readinto(view):
            target.write(view[:got])
