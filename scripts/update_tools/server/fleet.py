# SPDX-License-Identifier: Apache-2.0
"""What the server does by itself: carries out what gates.py decides, and notices devices that vanished.

After each report that may count, in its transaction, and by a timer for what only time brings. Any number of
processes may run the timer: whoever locks the deployment first does the work, and for the others nothing
is left to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from update_tools.server import gates, rollout
from update_tools.server.database import Database
from update_tools.server.db import Deployment, Device, Part, now
from update_tools.server.deployments import abort_all
from update_tools.server.records import SERVER, lock_deployment, note

log = logging.getLogger(__name__)

TICK_S = 2.0
LOOK_FOR_VANISHED_S = 10.0


def settle(session: Session, deployment: Deployment, moment: datetime | None = None) -> bool:
    """Do what the deployment's rules want now; it is locked. Returns whether there was anything to do."""
    steps = judge(session, deployment, moment or now())
    for step in steps:
        _carry_out(session, deployment, step)
    return bool(steps)


def judge(session: Session, deployment: Deployment, moment: datetime) -> list[gates.Step]:
    """What the deployment's rules want now."""
    if deployment.finished_at is not None or deployment.rules is None:
        return []
    rules = gates.parse(deployment.rules)
    return gates.judge(
        gates.Situation(
            rules=rules,
            facts=facts(session, deployment.id),
            control_map=deployment.control_map,
            gate_states=deployment.gate_states or {},
            is_held=deployment.held_at is not None,
            held_waived=deployment.held_waived,
            now=moment,
        )
    )


def facts(session: Session, deployment_id: str) -> gates.Facts:
    """Where the devices of a deployment are, counted by the database."""
    rows = session.execute(
        select(Part.status, Part.stage, func.count(), func.count(Part.vanished_at))
        .where(Part.deployment_id == deployment_id)
        .group_by(Part.status, Part.stage)
    ).all()
    return gates.Facts(
        {(status, stage): number for status, stage, number, _ in rows}, sum(row[3] for row in rows)
    )


def tick(db: Database, moment: datetime | None = None) -> int:
    """Look at all running deployments with rules; returns how many needed something done."""
    at = moment or now()
    running = select(Deployment).where(Deployment.finished_at.is_(None), Deployment.rules.is_not(None))
    with db.read() as session:
        due = [entry.id for entry in session.scalars(running).all() if judge(session, entry, at)]
    done = 0
    for deployment_id in due:
        with db.write() as session:
            done += settle(session, lock_deployment(session, deployment_id), at)
    return done


def find_vanished(db: Database, moment: datetime | None = None) -> int:
    """Mark devices that began a deployment and were not heard of for too long; returns how many are new."""
    at = moment or now()
    with db.read() as session:
        running = session.execute(
            select(Deployment.id, Deployment.rules).where(Deployment.finished_at.is_(None))
        ).all()
        due = []
        for deployment_id, rules in running:
            limit = at - timedelta(seconds=gates.parse(rules).vanished_after_s)
            if session.scalar(_silent(deployment_id, limit).limit(1)) is not None:
                due.append((deployment_id, limit))
    marked = 0
    for deployment_id, limit in due:
        with db.write() as session:
            deployment = lock_deployment(session, deployment_id)
            query = _silent(deployment_id, limit).order_by(Part.id).with_for_update(of=Part, key_share=True)
            for part in session.scalars(query.execution_options(populate_existing=True)).all():
                part.vanished_at = part.device.last_seen_at or part.handed_out_at
                note(session, deployment_id, part.device_id, SERVER, "vanished", "no request since then")
                marked += 1
            session.flush()
            settle(session, deployment, at)
    return marked


class Timer:
    """Runs `tick`, `find_vanished` and what is to be done `also` in a thread of its own.

    A database that is away is waited for.
    """

    def __init__(
        self, db: Database, interval_s: float = TICK_S, also: Sequence[Callable[[], object]] = ()
    ) -> None:
        self._db = db
        self._also = also
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the present round."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        rounds_per_look = max(1, round(LOOK_FOR_VANISHED_S / self._interval_s))
        number = 0
        while not self._end.wait(self._interval_s):
            try:
                for work in self._also:
                    work()
                tick(self._db)
                if number % rounds_per_look == 0:
                    find_vanished(self._db)
            except SQLAlchemyError as error:
                log.error("the rules of deployments wait: %s", str(error).splitlines()[0])
            except Exception:
                log.exception("the rules of deployments could not be looked at")
            number += 1


def _silent(deployment_id: str, limit: datetime) -> Select[Part]:
    return (
        select(Part)
        .join(Device, Device.id == Part.device_id)
        .where(
            Part.deployment_id == deployment_id,
            Part.finished_at.is_(None),
            Part.handed_out_at < limit,
            Part.vanished_at.is_(None),
            func.coalesce(Device.last_seen_at, Part.handed_out_at) < limit,
        )
    )


def _carry_out(session: Session, deployment: Deployment, step: gates.Step) -> None:
    states = dict(deployment.gate_states or {})
    if step.word == "abort":
        abort_all(session, deployment, source=SERVER, why=step.why)
    elif step.word == "hold":
        deployment.held_at, deployment.held_why = now(), step.why
        note(session, deployment.id, None, SERVER, "hold", step.why)
    elif step.word == "release":
        has_window = gates.parse(deployment.rules).gates[step.point].window is not None
        states[step.point] = gates.OPEN if has_window else gates.RELEASED
        _set_point(session, deployment, step, "continue")
    else:
        states.pop(step.point, None)
        _set_point(session, deployment, step, "pause")
    deployment.gate_states = states


def _set_point(session: Session, deployment: Deployment, step: gates.Step, action: str) -> None:
    deployment.control_map = rollout.with_action(deployment.control_map, step.point, action)
    deployment.map_version += 1
    note(session, deployment.id, None, SERVER, action, f"{step.point}: {step.why}")
