# SPDX-License-Identifier: Apache-2.0
"""Artifacts in an S3 bucket, or anything that speaks its protocol (MinIO, Ceph, Garage).

An upload is one S3 multipart upload: parts of PART_BYTES as they come, so no more than one part is ever in
memory. What is left over when a request ends is kept as an object of its own (`KEY.tail`), because parts
have a least size. Credentials come as for every S3 tool: environment, profile, instance role.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from update_agent.errors import UpdateError
from update_tools.server.faults import NotFound, Refusal, Unavailable
from update_tools.server.store import CHUNK_BYTES, State, Writer, no_room

PART_BYTES = 8 << 20  # S3 takes 10,000 parts of at least 5 MiB: 80 GiB
FULL = ("InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507")
GONE = ("NoSuchUpload", "NoSuchKey", "404")


class S3Store:
    """Objects `PREFIX/ID.mender`. The bucket must exist."""

    def __init__(self, url: str, *, endpoint: str = "", region: str = "") -> None:
        import boto3
        from botocore.config import Config

        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise UpdateError(f"--artifact-store {url!r} is not known", hint="s3://bucket/prefix")
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 4},
            max_pool_connections=128,
            signature_version="s3v4",
            # Stores other than Amazon's do not all know the checksums that are new in 2025.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if endpoint else "auto"},
        )
        try:
            self._s3 = boto3.client(
                "s3", endpoint_url=endpoint or None, region_name=region or None, config=config
            )
        except ValueError as error:
            raise UpdateError(f"--s3-endpoint {endpoint!r} cannot be used: {error}") from error

    def check(self) -> None:
        """Raises UpdateError unless the bucket is there for us."""
        try:
            with _answering(f"the bucket {self._bucket}"):
                self._s3.head_bucket(Bucket=self._bucket)
        except Refusal as error:
            raise UpdateError(
                str(error), hint="does the bucket exist, and are the credentials in the environment?"
            ) from error

    def owner(self) -> str:
        try:
            with _answering():
                kept = self._s3.get_object(Bucket=self._bucket, Key=f"{self._prefix}store.id")["Body"].read()
        except NotFound:
            return ""
        return str(kept.decode().strip())

    def claim(self, owner: str) -> None:
        with _answering():
            self._s3.put_object(Bucket=self._bucket, Key=f"{self._prefix}store.id", Body=owner.encode())

    def begin(self, upload_id: str) -> State:
        with _answering():
            made = self._s3.create_multipart_upload(
                Bucket=self._bucket,
                Key=self._key(upload_id),
                ContentType="application/vnd.mender-artifact",
            )
        return {"upload": made["UploadId"], "parts": [], "tail": 0, "length": 0}

    def writer(self, upload_id: str, offset: int, state: State) -> Writer:
        return _PartWriter(self, upload_id, state)

    def complete(self, upload_id: str, state: State) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(state["parts"], 1)]
        try:
            with _answering():
                self._s3.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._key(upload_id),
                    UploadId=state["upload"],
                    MultipartUpload={"Parts": parts},
                )
        except NotFound:
            if not self._exists(upload_id):  # else it was completed before
                raise Refusal("the upload is gone", hint="start it again", status=410) from None
        self._delete(self._tail_key(upload_id))

    @contextmanager
    def open(self, upload_id: str) -> Iterator[IO[bytes]]:
        with _answering():
            body = self._s3.get_object(Bucket=self._bucket, Key=self._key(upload_id))["Body"]
            try:
                yield body
            finally:
                body.close()

    def publish(self, upload_id: str) -> None:
        pass

    def read(self, artifact_id: str, start: int, length: int) -> Iterator[bytes]:
        wanted = f"bytes={start}-{start + length - 1}"
        with _answering():
            body = self._s3.get_object(Bucket=self._bucket, Key=self._key(artifact_id), Range=wanted)["Body"]
            try:
                yield from body.iter_chunks(CHUNK_BYTES)
            finally:
                body.close()

    def path(self, artifact_id: str) -> Path | None:
        return None

    def link(self, artifact_id: str, lifetime_s: int) -> str:
        where = {"Bucket": self._bucket, "Key": self._key(artifact_id)}
        return str(self._s3.generate_presigned_url("get_object", Params=where, ExpiresIn=lifetime_s))

    def discard(self, upload_id: str, state: State) -> None:
        if state.get("upload"):
            with suppress(NotFound), _answering():
                self._s3.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(upload_id), UploadId=state["upload"]
                )
        self._delete(self._key(upload_id))
        self._delete(self._tail_key(upload_id))

    def ids(self, *, older_than_s: float) -> Iterable[str]:
        latest = time.time() - older_than_s
        pages = self._s3.get_paginator("list_objects_v2")
        with _answering():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for entry in page.get("Contents", ()):
                    name = str(entry["Key"]).removeprefix(self._prefix)
                    if name.endswith((".mender", ".tail")) and entry["LastModified"].timestamp() <= latest:
                        yield name.partition(".")[0]

    # --- what the writer needs ---------------------------------------------------------------------------

    def put_part(self, upload_id: str, upload: str, number: int, data: bytes) -> str:
        """Upload a part and return its ETag."""
        with _answering():
            made = self._s3.upload_part(
                Bucket=self._bucket,
                Key=self._key(upload_id),
                UploadId=upload,
                PartNumber=number,
                Body=data,
            )
        return str(made["ETag"])

    def put_tail(self, upload_id: str, data: bytes) -> None:
        """Keep what is no part yet."""
        with _answering():
            self._s3.put_object(Bucket=self._bucket, Key=self._tail_key(upload_id), Body=data)

    def get_tail(self, upload_id: str, length: int) -> bytes:
        """What was left over last time."""
        with _answering():
            kept = self._s3.get_object(Bucket=self._bucket, Key=self._tail_key(upload_id))["Body"].read()
        if len(kept) < length:
            raise Refusal("the artifact store lost a part of the upload", hint="start it again", status=410)
        return bytes(kept[:length])

    def _exists(self, upload_id: str) -> bool:
        try:
            with _answering():
                self._s3.head_object(Bucket=self._bucket, Key=self._key(upload_id))
        except NotFound:
            return False
        return True

    def _delete(self, key: str) -> None:
        with _answering():
            self._s3.delete_object(Bucket=self._bucket, Key=key)

    def _key(self, upload_id: str) -> str:
        return f"{self._prefix}{upload_id}.mender"

    def _tail_key(self, upload_id: str) -> str:
        return f"{self._prefix}{upload_id}.tail"


class _PartWriter:
    """Cuts an upload into parts. Only the last one may be short."""

    def __init__(self, store: S3Store, upload_id: str, state: State) -> None:
        self._store = store
        self._id = upload_id
        self._upload = str(state["upload"])
        self._parts = list(state["parts"])
        self._length = int(state["length"])
        self._waiting = bytearray()
        if state["tail"]:
            self._waiting += store.get_tail(upload_id, state["tail"])

    def write(self, data: bytes) -> None:
        self._waiting += data
        self._length += len(data)
        while len(self._waiting) >= PART_BYTES:
            self._put(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]

    def commit(self, *, is_last: bool = False) -> tuple[int, State]:
        if self._waiting and is_last:
            self._put(bytes(self._waiting))
            self._waiting.clear()
        elif self._waiting:
            self._store.put_tail(self._id, bytes(self._waiting))
        state = {
            "upload": self._upload,
            "parts": list(self._parts),
            "tail": len(self._waiting),
            "length": self._length,
        }
        return self._length, state

    def close(self) -> None:
        self._waiting.clear()

    def _put(self, data: bytes) -> None:
        self._parts.append(self._store.put_part(self._id, self._upload, len(self._parts) + 1, data))


@contextmanager
def _answering(what: str = "the artifact store") -> Iterator[None]:
    """The library's errors as ours: NotFound, 507, or Unavailable."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in GONE:
            raise NotFound(f"{what} does not have it") from error
        if code in FULL:
            raise no_room() from error
        raise Unavailable(f"{what} refuses: {code or error}") from error
    except BotoCoreError as error:
        raise Unavailable(f"{what} does not answer: {error}") from error
