# SPDX-License-Identifier: Apache-2.0
"""What devices send, for the API's description; device_api.py checks it by hand to refuse in few words."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
STATUSES = (
    "downloading",
    "installing",
    "rebooting",
    "pause_before_installing",
    "pause_before_rebooting",
    "pause_before_committing",
    "success",
    "failure",
    "already-installed",
)


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def body(schema: dict[str, Any], *headers: str) -> dict[str, Any]:
    """A route's `openapi_extra`: its JSON body, and headers that the signature does not show."""
    parameters = [{"name": name, "in": "header", "required": True, "schema": TEXT} for name in headers]
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}} | (
        {"parameters": parameters} if parameters else {}
    )


AUTH_REQUEST = body(
    _object(("id_data", "pubkey"), id_data=TEXT, pubkey=TEXT, tenant_token=TEXT, tier=TEXT), "X-MEN-Signature"
)
NEXT = body(
    _object(
        ("device_provides",),
        device_provides={
            "type": "object",
            "properties": {"artifact_name": TEXT, "device_type": TEXT},
            "required": ["artifact_name", "device_type"],
            "additionalProperties": TEXT,
        },
        update_control_map={"type": "boolean"},
    )
)
STATUS = body(_object(("status",), status={"type": "string", "enum": list(STATUSES)}, substate=TEXT))
LOG = body(
    _object(
        ("messages",),
        messages={
            "type": "array",
            "items": _object(("timestamp", "level", "message"), timestamp=TEXT, level=TEXT, message=TEXT),
        },
    )
)
ATTRIBUTES = body(
    {
        "type": "array",
        "items": _object(
            ("name", "value"),
            name={"type": "string", "minLength": 1},
            value={
                "anyOf": [
                    TEXT,
                    {"type": "number"},
                    {"type": "array", "items": {"anyOf": [TEXT, {"type": "number"}]}},
                ]
            },
            description=TEXT,
        ),
    }
)
