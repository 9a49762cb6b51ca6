# SPDX-License-Identifier: Apache-2.0
"""A fleet on a real database, without HTTP: the services are called as the APIs call them, with a clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from update_tools.server import (
    deployments,
    device_views,
    fleet,
    gates,
    records,
    rollout,
    schedule,
    services,
    views,
)
from update_tools.server.database import Database
from update_tools.server.db import Artifact, Device, Event, Part
from update_tools.server.who import Who

DEE = Who(name="dee", scope="deploy")
SATURDAY = datetime(2026, 1, 3, 1, 0, tzinfo=UTC)
NEW = "release-2"
INSTALL, REBOOT, COMMIT = (point.name for point in rollout.POINTS)


def pause(*points: str) -> dict[str, Any]:
    return {"states": {point: {"action": "pause"} for point in points}}


class Fleet:
    """Devices d0, d1, ... and one artifact; `at` is what all clocks show."""

    def __init__(self, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.db = db
        self.at = SATURDAY
        for module in (services, deployments, fleet, records, views):
            monkeypatch.setattr(module, "now", lambda: self.at)

    def later(self, **span: float) -> None:
        self.at += timedelta(**span)

    def build(self, count: int, **more: Any) -> None:
        with self.db.write() as session:
            session.add(
                Artifact(
                    id="artifact",
                    name=NEW,
                    device_types=["virt64"],
                    payload_type="rootfs-image",
                    is_signed=False,
                    info={},
                    size_bytes=1000,
                    sha256="",
                )
            )
            for number in range(count):
                session.add(
                    Device(
                        id=f"d{number}",
                        identity=json.dumps({"mac": f"52:54:00:00:00:{number:02x}"}),
                        status="accepted",
                        device_type="virt64",
                        artifact_name="release-1",
                        created_at=self.at,
                        **more,
                    )
                )

    def deploy(self, name: str = "new", **wanted: Any) -> str:
        if isinstance(wanted.get("rules"), dict):
            wanted["rules"] = gates.parse(wanted["rules"])
        if isinstance(wanted.get("phases"), list):
            wanted["phases"] = schedule.parse(wanted["phases"])
        wanted.setdefault("control_map", rollout.OPEN_MAP)
        with self.db.write(DEE) as session:
            asked = deployments.NewDeployment(name=name, artifact_name=NEW, **wanted)
            return deployments.create_deployment(session, asked).id

    def poll(self, number: int, *, installed: str = "release-1", understands_maps: bool = True) -> str | None:
        provides = {"artifact_name": installed, "device_type": "virt64"}
        with self.db.write() as session:
            device = session.get(Device, f"d{number}")
            assert device is not None
            device.last_seen_at = self.at
            found = services.poll(session, device, provides, understands_maps=understands_maps)
            return found.deployment_id if found else None

    def report(self, number: int, deployment: str, *statuses: str, substate: str | None = None) -> None:
        for status in statuses:
            with self.db.write() as session:
                device = session.get(Device, f"d{number}")
                assert device is not None
                device.last_seen_at = self.at
                services.report(session, device, deployment, status, substate)

    def walk(self, deployment: str, number: int, *statuses: str) -> None:
        """Take the deployment and report these."""
        assert self.poll(number) == deployment
        self.report(number, deployment, *statuses)

    def actions(self, number: int, deployment: str) -> Mapping[str, str]:
        """What the device's map says at each point, fetched as a refresh does."""
        with self.db.read() as session:
            device = session.get(Device, f"d{number}")
            assert device is not None
            answer = services.control_map(session, device, deployment)
        if answer.is_news:
            with self.db.write() as session:
                services.note_map_taken(session, f"d{number}", deployment, answer.version)
        return {point: rollout.action_at(answer.value, point) for point in rollout.BY_NAME}

    def decide(self, deployment: str, action: str, point: str | None = None, *devices: int) -> Any:
        with self.db.write(DEE) as session:
            chosen = [f"d{number}" for number in devices] if devices else None
            return deployments.decide(session, deployment, action, point, chosen)

    def upload_log(self, number: int, deployment: str, *texts: str) -> None:
        messages = [
            {"timestamp": f"2026-01-03T01:00:{index:02d}Z", "level": "info", "message": text}
            for index, text in enumerate(texts)
        ]
        with self.db.write() as session:
            device = session.get(Device, f"d{number}")
            assert device is not None
            services.store_log(session, device, deployment, messages)

    def row(self, number: int, deployment: str) -> device_views.DeviceRow:
        with self.db.read() as session:
            return device_views.device_detail(session, deployment, f"d{number}").row

    def detail(self, deployment: str) -> views.DeploymentDetail:
        with self.db.read() as session:
            return views.deployment_detail(session, deployment, self.at)

    def counts(self, deployment: str) -> dict[str, int]:
        return {place: count for place, count in self.detail(deployment).row.counts.items() if count}

    def words(self, deployment: str, number: int | None = None) -> list[str]:
        """What happened, as words: to the deployment itself, or to one device."""
        with self.db.read() as session:
            events: list[Event] = list(
                views.events_of(session, deployment, None if number is None else f"d{number}")
            )
        return [event.word for event in events if (event.device_id is None) == (number is None)]

    def part(self, number: int, deployment: str) -> Part:
        with self.db.read() as session:
            return records.get_part(session, deployment, f"d{number}")
