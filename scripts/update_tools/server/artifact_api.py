# SPDX-License-Identifier: Apache-2.0
"""The JSON API of artifacts and releases, as the reference has it; resumable.py has the other uploads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from update_tools.server import documents, intake, uploads
from update_tools.server.db import Artifact
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import NotFound
from update_tools.server.shapes import moment

router = APIRouter(prefix="/api/management", tags=["management"])
ARTIFACTS = "/v1/deployments/artifacts"
RELEASES_V1 = "/v1/deployments/deployments/releases"
RELEASES_V2 = "/v2/deployments/deployments/releases"

Page = Annotated[int, Query(ge=1, le=1_000_000)]
PerPage = Annotated[int, Query(ge=1, le=500)]
Sort = Literal["name:asc", "name:desc", "modified:asc", "modified:desc"]
ORDERS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "name:asc": (Artifact.name.asc(), Artifact.created_at.desc()),
    "name:desc": (Artifact.name.desc(), Artifact.created_at.desc()),
    "modified:asc": (Artifact.created_at.asc(), Artifact.id.asc()),
    "modified:desc": (Artifact.created_at.desc(), Artifact.id.asc()),
}


class DescriptionBody(BaseModel):
    """What can be changed about an artifact."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field(max_length=4096)


# --- artifacts -------------------------------------------------------------------------------------------


@router.post(
    ARTIFACTS,
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["artifact"],
                        "properties": {
                            "size": {"type": "integer"},
                            "description": {"type": "string"},
                            "artifact": {"type": "string", "format": "binary"},
                        },
                    }
                }
            },
        }
    },
)
async def upload(request: Request) -> Response:
    """Upload an artifact: multipart with `artifact` (the file), `description`, `size`."""
    entry = await uploads.receive(request, house_of(request), lambda form: None)
    return Response(status_code=201, headers={"Location": f"/api/management{ARTIFACTS}/{entry.id}"})


@router.get(ARTIFACTS)
def all_artifacts(request: Request, name: str = "") -> list[dict[str, Any]]:
    """All artifacts, newest first."""
    with house_of(request).db.read() as session:
        found = session.scalars(_wanted(name, "").order_by(*ORDERS["modified:desc"]))
        return [documents.artifact(entry) for entry in found]


@router.get(f"{ARTIFACTS}/list")
def list_artifacts(
    request: Request,
    response: Response,
    name: str = "",
    description: str = "",
    device_type: str = "",
    page: Page = 1,
    per_page: PerPage = 20,
    sort: Sort = "name:asc",
) -> list[dict[str, Any]]:
    """Artifacts by page; X-Total-Count has how many there are."""
    with house_of(request).db.read() as session:
        found = session.scalars(_wanted(name, description).order_by(*ORDERS[sort])).all()
        chosen = [entry for entry in found if not device_type or device_type in entry.device_types]
        response.headers["x-total-count"] = str(len(chosen))
        return [documents.artifact(entry) for entry in chosen[(page - 1) * per_page : page * per_page]]


@router.get(ARTIFACTS + "/{artifact_id}")
def artifact(request: Request, artifact_id: str) -> dict[str, Any]:
    """One artifact."""
    with house_of(request).db.read() as session:
        return documents.artifact(_get(session, artifact_id))


@router.put(ARTIFACTS + "/{artifact_id}", status_code=204)
def describe(request: Request, artifact_id: str, body: DescriptionBody) -> Response:
    """Change the description."""
    with house_of(request).db.write(who_of(request)) as session:
        _get(session, artifact_id).description = body.description
    return Response(status_code=204)


@router.get(ARTIFACTS + "/{artifact_id}/download")
def download_link(request: Request, artifact_id: str) -> dict[str, str]:
    """A link to the artifact's bytes that needs no token, and until when it works."""
    house = house_of(request)
    with house.db.read() as session:
        _get(session, artifact_id)
    uri, expire = house.link(artifact_id, str(request.base_url))
    return {"uri": uri, "expire": moment(expire)}


@router.delete(ARTIFACTS + "/{artifact_id}", status_code=204)
def delete_artifact(request: Request, artifact_id: str) -> Response:
    """Remove an artifact. 409 while a deployment that is not over needs it."""
    house_of(request).intake.remove(artifact_id, who_of(request))
    return Response(status_code=204)


@router.get("/v1/deployments/limits/storage")
def storage(request: Request) -> dict[str, int]:
    """How much room the artifacts take; the limit 0 means none but the medium's."""
    with house_of(request).db.read() as session:
        usage = session.scalar(select(func.coalesce(func.sum(Artifact.size_bytes), 0)))
    return {"limit": 0, "usage": int(usage or 0)}


# --- releases --------------------------------------------------------------------------------------------


@router.get(RELEASES_V1)
def all_releases(request: Request, name: str = "") -> list[dict[str, Any]]:
    """Artifacts by release."""
    with house_of(request).db.read() as session:
        found = intake.releases(session, [name] if name else None)
        return [_release_v1(release, entries) for release, entries in found.items()]


@router.get(f"{RELEASES_V1}/list")
def list_releases(
    request: Request, response: Response, name: str = "", page: Page = 1, per_page: PerPage = 20
) -> list[dict[str, Any]]:
    """Artifacts by release, by page."""
    found = _page_of_releases(request, response, name, page, per_page)
    return [_release_v1(release, entries) for release, entries in found]


@router.get(RELEASES_V2)
def list_releases_v2(
    request: Request, response: Response, name: str = "", page: Page = 1, per_page: PerPage = 20
) -> list[dict[str, Any]]:
    """Releases, by page."""
    found = _page_of_releases(request, response, name, page, per_page)
    return [_release_v2(release, entries) for release, entries in found]


@router.get(RELEASES_V2 + "/{release_name:path}")
def release(request: Request, release_name: str) -> dict[str, Any]:
    """One release."""
    with house_of(request).db.read() as session:
        found = intake.releases(session, [release_name])
        if release_name not in found:
            raise NotFound("there is no such release")
        return _release_v2(release_name, found[release_name])


# --- inside ----------------------------------------------------------------------------------------------


def _get(session: Session, artifact_id: str) -> Artifact:
    entry = session.get(Artifact, artifact_id)
    if entry is None:
        raise NotFound("there is no such artifact")
    return entry


def _wanted(name: str, description: str) -> Select[Artifact]:
    query = select(Artifact)
    if name:
        query = query.where(Artifact.name == name)
    if description:
        query = query.where(Artifact.description.contains(description, autoescape=True))
    return query


def _page_of_releases(
    request: Request, response: Response, name: str, page: int, per_page: int
) -> list[tuple[str, list[Artifact]]]:
    with house_of(request).db.read() as session:
        found = list(intake.releases(session, [name] if name else None).items())
    response.headers["x-total-count"] = str(len(found))
    return found[(page - 1) * per_page : page * per_page]


def _release_v1(name: str, entries: list[Artifact]) -> dict[str, Any]:
    return {"name": name, "artifacts": [documents.artifact(entry) for entry in entries]}


def _release_v2(name: str, entries: list[Artifact]) -> dict[str, Any]:
    return {
        "name": name,
        "modified": moment(max(entry.created_at for entry in entries)),
        "artifacts": [documents.artifact(entry) for entry in entries],
        "artifacts_count": len(entries),
        "tags": [],
        "notes": "",
    }
