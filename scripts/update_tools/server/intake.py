# SPDX-License-Identifier: Apache-2.0
"""Artifacts on their way in: bytes into the store, then looked at, then published.

Every upload has a row from its first byte to its end, so a killed server leaves nothing that nobody knows
of. An upload becomes visible in one step, the transaction that puts its artifact's row in the place of the
upload's; both have the same id, so a client that lost the last answer can ask what became of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from update_agent.errors import UpdateError
from update_tools.server import artifact_info, audit
from update_tools.server.artifact_info import ArtifactInfo
from update_tools.server.database import PUBLISH_LOCK, STORE_LOCK, Database, alone, locked
from update_tools.server.db import Artifact, Deployment, Part, Secret, Upload, new_id, now
from update_tools.server.faults import Conflict, NotFound, Unprocessable
from update_tools.server.store import Store, Writer
from update_tools.server.who import Who

log = logging.getLogger(__name__)

UPLOAD_LIFE = timedelta(hours=24)  # since its last byte


class Intake:
    """Uploads of one server."""

    def __init__(self, db: Database, store: Store) -> None:
        self._db = db
        self._store = store

    def begin(
        self,
        who: Who,
        *,
        is_resumable: bool,
        size_bytes: int | None = None,
        sha256: str = "",
        description: str = "",
    ) -> str:
        """Make an empty upload and return its id."""
        upload_id = new_id()
        state = self._store.begin(upload_id)
        with self._db.write(who) as session:
            session.add(
                Upload(
                    id=upload_id,
                    is_resumable=is_resumable,
                    size_bytes=size_bytes,
                    sha256=sha256,
                    description=description[:4096],
                    actor=who.name,
                    store_state=dict(state),
                )
            )
        return upload_id

    def find(self, upload_id: str) -> Upload:
        """A resumable upload. Raises NotFound."""
        with self._db.read() as session:
            upload = session.get(Upload, upload_id)
        if upload is None or not upload.is_resumable:
            raise NotFound("there is no such upload", hint="start it again")
        return upload

    def artifact(self, artifact_id: str) -> Artifact | None:
        """What became of an upload."""
        with self._db.read() as session:
            return session.get(Artifact, artifact_id)

    def with_sha256(self, sha256: str) -> Artifact | None:
        """An artifact with exactly these bytes."""
        with self._db.read() as session:
            return session.scalar(select(Artifact).where(Artifact.sha256 == sha256).limit(1))

    def take(self, upload_id: str, offset: int) -> Taker:
        """Go on with an upload. Raises Conflict if that is not its end, Refusal 423 if another has it."""
        mine = new_id()
        with self._db.write() as session:
            upload = _locked_upload(session, upload_id)
            if offset != upload.offset_bytes:
                raise Conflict(f"the upload has {upload.offset_bytes} bytes, not {offset}")
            writer = self._store.writer(upload_id, offset, upload.store_state)
            upload.writer = mine
            upload.touched_at = now()
        return Taker(self._db, upload_id, mine, writer)

    def describe(self, upload_id: str, description: str) -> None:
        """Set the description, which may come after the bytes."""
        with self._db.write() as session:
            _locked_upload(session, upload_id).description = description[:4096]

    def finish(self, upload_id: str, who: Who) -> Artifact:
        """Make it an artifact. On a refusal (422 not usable, 409 the release has one) the upload is gone."""
        with self._db.read() as session:
            upload = session.get(Upload, upload_id)
            done = session.get(Artifact, upload_id)
        if done is not None:
            return done
        if upload is None:
            raise NotFound("there is no such upload", hint="start it again")
        self._store.complete(upload_id, upload.store_state)
        try:
            with self._store.open(upload_id) as stream:
                info, sha256 = artifact_info.read_stream(stream, upload.offset_bytes)
            if upload.sha256 and upload.sha256 != sha256:
                raise Unprocessable(f"the artifact came with SHA-256 {sha256}, {upload.sha256} was announced")
            return self._publish(upload, info, sha256, who)
        except (Unprocessable, Conflict):
            self.discard(upload_id)
            raise

    def discard(self, upload_id: str) -> None:
        """Give an upload up. Its bytes go first: on a full medium the database has room only then."""
        with self._db.write() as session:
            upload = locked(session, Upload, upload_id)
            if upload is not None:
                self._store.discard(upload_id, upload.store_state)
                session.delete(upload)

    def remove(self, artifact_id: str, who: Who) -> None:
        """Remove a published artifact. Raises NotFound, or Conflict while a deployment needs it."""
        with self._db.write(who) as session:
            entry = session.get(Artifact, artifact_id)
            if entry is None:
                raise NotFound("there is no such artifact")
            in_use = select(Deployment.id).where(
                Deployment.finished_at.is_(None), Deployment.artifact_name == entry.name
            )
            if session.scalar(in_use.limit(1)) is not None:
                raise Conflict("the artifact is used by an active deployment", hint="abort it first")
            for part in session.scalars(select(Part).where(Part.artifact_id == artifact_id)):
                part.artifact_id = None
            session.flush()
            session.delete(entry)
            text = f"{entry.name} for {', '.join(entry.device_types)}"
            audit.record(session, "deleted", "artifact", artifact_id, text)
        # After the commit: a crash here leaves bytes that nothing refers to, and the next start removes them.
        self._store.discard(artifact_id, {})

    def sweep(self, *, is_alone: bool) -> None:
        """Remove uploads that a killed process, or a client that went away, left behind.

        `is_alone`: no other process uses database and store, so what no request of ours has is dead.
        """
        with self._db.read() as session:
            old = now() - UPLOAD_LIFE
            dead = [
                upload.id
                for upload in session.scalars(select(Upload))
                if upload.touched_at < old or (is_alone and not upload.is_resumable)
            ]
        for upload_id in dead:
            log.warning("removing upload %s: it was never finished", upload_id)
            self.discard(upload_id)
        age_s = 0.0 if is_alone else UPLOAD_LIFE.total_seconds()
        strangers = set(self._store.ids(older_than_s=age_s))
        with self._db.read() as session:
            strangers -= {*session.scalars(select(Artifact.id)), *session.scalars(select(Upload.id))}
        for stranger in strangers:
            log.warning("removing %s from the artifact store: nothing refers to it", stranger)
            self._store.discard(stranger, {})

    def _publish(self, upload: Upload, info: ArtifactInfo, sha256: str, who: Who) -> Artifact:
        entry = Artifact(
            id=upload.id,
            name=info.name,
            device_types=info.device_types,
            payload_type=info.payload_type,
            is_signed=info.is_signed,
            info=info.as_dict(),
            description=upload.description,
            size_bytes=upload.offset_bytes,
            sha256=sha256,
        )
        same: Artifact | None = None
        with self._db.write(who) as session:
            alone(session, PUBLISH_LOCK)
            row = locked(session, Upload, upload.id)
            if row is None:
                raise NotFound("the upload was given up meanwhile", hint="start it again")
            same = _same_or_conflict(session, entry)
            if same is None:
                self._store.publish(upload.id)
                session.add(entry)
                session.delete(row)
                audit.record(
                    session,
                    "uploaded",
                    "artifact",
                    entry.id,
                    f"{entry.name} for {', '.join(entry.device_types)}",
                )
        if same is not None:  # the same bytes again: a repeated upload, whose first answer was lost
            self.discard(upload.id)
            return same
        return entry


class Taker:
    """One request's turn at an upload: more bytes, and from time to time a commit."""

    def __init__(self, db: Database, upload_id: str, mine: str, writer: Writer) -> None:
        self._db = db
        self._id = upload_id
        self._mine = mine
        self._writer = writer

    def write(self, data: bytes) -> None:
        """More bytes."""
        self._writer.write(data)

    def commit(self, *, is_last: bool = False) -> int:
        """What was written stays, whatever happens; returns the upload's length.

        Raises Conflict when another request went on with the upload meanwhile: then that one's bytes count.
        """
        length, state = self._writer.commit(is_last=is_last)
        with self._db.write() as session:
            upload = _locked_upload(session, self._id)
            if upload.writer != self._mine:
                raise Conflict("another request goes on with this upload")
            upload.offset_bytes = length
            upload.store_state = dict(state)
            upload.touched_at = now()
        return length

    def close(self) -> None:
        """Let go."""
        self._writer.close()


def own_store(db: Database, store: Store) -> None:
    """Make sure that store and database belong together; a new pair is married here."""
    with db.write() as session:
        alone(session, STORE_LOCK)
        known = session.get(Secret, "store.id")
        owner = store.owner()
        if known is None and not owner:
            known = Secret(name="store.id", value=new_id())
            session.add(known)
            store.claim(known.value)
        elif known is None:
            raise UpdateError(
                "the artifact store belongs to another server's database",
                hint="another --artifact-store prefix or --data folder",
            )
        elif known.value != owner:
            raise UpdateError(
                "the artifacts of this database are in another store",
                hint="servers that share a database share --artifact-store (or --data) too",
            )


def releases(session: Session, names: Iterable[str] | None = None) -> dict[str, list[Artifact]]:
    """Artifacts by release name, newest release first."""
    query = select(Artifact).order_by(Artifact.created_at.desc())
    if names is not None:
        query = query.where(Artifact.name.in_(list(names)))
    found: dict[str, list[Artifact]] = {}
    for entry in session.scalars(query):
        found.setdefault(entry.name, []).append(entry)
    return found


def _locked_upload(session: Session, upload_id: str) -> Upload:
    upload = locked(session, Upload, upload_id)
    if upload is None:
        raise NotFound("there is no such upload", hint="start it again")
    return upload


def _same_or_conflict(session: Session, entry: Artifact) -> Artifact | None:
    for other in session.scalars(select(Artifact).where(Artifact.name == entry.name)):
        if other.sha256 == entry.sha256:
            return other
        both = sorted(set(other.device_types) & set(entry.device_types))
        if both:
            raise Conflict(f"release {entry.name!r} already has an artifact for {', '.join(both)}")
    return None
