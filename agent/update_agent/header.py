# SPDX-License-Identifier: Apache-2.0
"""What an artifact says of itself: header-info, scripts, type-info, meta-data (artifact-v3.md section 4)."""

from __future__ import annotations

from update_agent import states
from update_agent.errors import ArtifactError
from update_agent.lean import is_text, json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from update_agent.tarstream import Member, TarStream

MAX_JSON_BYTES = 1 << 20  # each of header-info, type-info, meta-data
MAX_UNPACKED_BYTES = 32 << 20  # all members together
MAX_SCRIPTS = 1000

_SCRIPT_STATES = {state.name for state in states.STATES if state.scripts == states.ARTIFACT}
_TYPE_INFO, _META_DATA = "headers/0000/type-info", "headers/0000/meta-data"


class Header:
    """Name, payload type, what it needs and gives. JSON documents also as the verbatim bytes.

    `clears` None: the artifact says nothing about clearing, which differs from an empty list. `depends` holds
    the lists of both documents, `device_type` among them. `scripts`: (file name, content) in archive order.
    `payload_type` None: an artifact without payload, it only sets provides.
    """

    __slots__ = (
        "clears",
        "depends",
        "device_types",
        "group",
        "header_info",
        "meta_data",
        "name",
        "payload_type",
        "provides",
        "scripts",
        "signed",
        "type_info",
    )

    def __init__(
        self,
        *,
        name: str,
        group: str = "",
        payload_type: str | None = None,
        device_types: list[str],
        provides: dict[str, str] | None = None,
        clears: list[str] | None = None,
        depends: dict[str, list[str]] | None = None,
        header_info: bytes = b"",
        type_info: bytes = b"",
        meta_data: bytes | None = None,
        scripts: list[tuple[str, bytes]] | None = None,
        signed: bool = False,
    ) -> None:
        self.name = name
        self.group = group
        self.payload_type = payload_type
        self.device_types = device_types
        self.provides = provides or {}
        self.clears = clears
        self.depends = depends or {"device_type": device_types}
        self.header_info = header_info
        self.type_info = type_info
        self.meta_data = meta_data
        self.scripts = scripts or []
        self.signed = signed


def read_header(tar: TarStream, *, signed: bool) -> Header:
    """Read the whole (already verified) header archive. Raises ArtifactError."""
    total = 0

    def content(member: Member, limit_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
        nonlocal total
        total += member.size
        if total > MAX_UNPACKED_BYTES:
            raise ArtifactError(
                f"the artifact's header unpacks to more than {MAX_UNPACKED_BYTES} bytes (at {member.name})",
                hint="large files belong into the payload, not into state scripts",
            )
        return tar.read_whole(member, limit_bytes)

    member = tar.next()
    if member is None or member.name != "header-info":
        raise _order(member, "header-info")
    header_info = content(member, MAX_JSON_BYTES)

    scripts: dict[str, bytes] = {}
    while (member := tar.next()) is not None and member.name.startswith("scripts/"):
        name = member.name.removeprefix("scripts/")
        if not _is_script(name):
            raise ArtifactError(
                f"the artifact has a state script named {member.name!r}",
                hint="names are like ArtifactInstall_Enter_10_what-it-does; Download, Idle and Sync "
                "scripts belong into the root file system",
            )
        if name in scripts:
            raise ArtifactError(f"the artifact has the state script {name} twice")
        if len(scripts) == MAX_SCRIPTS:
            raise ArtifactError(f"the artifact has more than {MAX_SCRIPTS} state scripts")
        scripts[name] = content(member)

    if member is None or member.name != _TYPE_INFO:
        raise _order(member, _TYPE_INFO)
    type_info = content(member, MAX_JSON_BYTES)

    member = tar.next()
    meta_data = None
    if member is not None and member.name == _META_DATA:
        meta_data = content(member, MAX_JSON_BYTES)
        member = tar.next()
    if member is not None:
        raise _order(member, "the end")
    tar.finish()
    return parse(header_info, type_info, meta_data, list(scripts.items()), signed=signed)


def parse(
    header_info: bytes,
    type_info: bytes,
    meta_data: bytes | None,
    scripts: list[tuple[str, bytes]],
    *,
    signed: bool,
) -> Header:
    """Check the documents against the format. Raises ArtifactError naming document and field."""
    info, kind = _Document("header-info", header_info), _Document("type-info", type_info)
    payload_type = _payload_type(info)
    provides = info.section("artifact_provides", required=True)
    depends = info.section("artifact_depends", required=True)
    device_types = depends.strings("device_type", required=True)
    needs = {"device_type": device_types}
    for key in ("artifact_name", "artifact_group"):
        if key in depends.values:
            needs[key] = depends.strings(key)
    _check_type(kind, payload_type)
    gives = kind.section("artifact_provides")
    extra = kind.section("artifact_depends")
    for key, value in extra.values.items():
        wanted = [extra.string(key)] if isinstance(value, str) else extra.strings(key)
        allowed = [item for item in needs.get(key, wanted) if item in wanted]
        if not allowed:
            raise ArtifactError(
                f"nothing can satisfy the artifact: header-info asks for {key} {', '.join(needs[key])}, "
                f"type-info for {', '.join(wanted)}"
            )
        needs[key] = allowed
    if meta_data:
        _Document("meta-data", meta_data)
        if payload_type is None:
            raise ArtifactError("the artifact has meta-data but no payload it could belong to")
    return Header(
        name=provides.string("artifact_name", required=True),
        group=provides.string("artifact_group"),
        payload_type=payload_type,
        device_types=device_types,
        provides={key: gives.string(key) for key in gives.values},
        clears=kind.strings("clears_artifact_provides", may_be_empty=True)
        if "clears_artifact_provides" in kind.values
        else None,
        depends=needs,
        header_info=header_info,
        type_info=type_info,
        meta_data=meta_data,
        scripts=scripts,
        signed=signed,
    )


def _is_script(name: str) -> bool:
    """Whether it is a state script's name: State_Action_NN, perhaps with _what-it-does."""
    parts = name.split("_", 3)
    return (
        len(parts) >= 3
        and parts[0] in _SCRIPT_STATES
        and parts[1] in states.ACTIONS
        and len(parts[2]) == 2
        and parts[2].isascii()
        and parts[2].isdigit()
        and parts[-1] != ""
        and set("/ \t\n\r\f\v").isdisjoint(name)
    )


def load_json(what: str, data: bytes) -> Any:
    """Parse strict UTF-8 JSON; ArtifactError names the document."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except ValueError as error:
        raise ArtifactError(f"the artifact's {what} is not valid JSON: {error}") from error


class _Document:
    """A JSON object whose fields are fetched with their types checked."""

    def __init__(self, what: str, data: bytes | dict[str, Any]) -> None:
        self.what = what
        values = load_json(what, data) if isinstance(data, bytes) else data
        if not isinstance(values, dict):
            raise ArtifactError(f"the artifact's {what} is not a JSON object but {_json_type(values)}")
        self.values: dict[str, Any] = values

    def wrong(self, key: str, expected: str) -> ArtifactError:
        """The error for a field that is not as expected."""
        found = _json_type(self.values[key]) if key in self.values else "missing"
        return ArtifactError(f"{key!r} in the artifact's {self.what} is {found}; expected {expected}")

    def section(self, key: str, *, required: bool = False) -> _Document:
        """An object inside; empty when missing and not required."""
        value = self.values.get(key)
        if key not in self.values and not required:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return _Document(f"{self.what} {key}", value)

    def string(self, key: str, *, required: bool = False) -> str:
        """A string; "" when missing and not required."""
        value = self.values.get(key)
        if key not in self.values and not required:
            value = ""
        if not isinstance(value, str) or (required and not value):
            raise self.wrong(key, "a string with text" if required else "a string")
        return self._text(value, key)

    def strings(self, key: str, *, required: bool = False, may_be_empty: bool = False) -> list[str]:
        """A list of strings, with at least one unless it may be empty."""
        value = self.values.get(key)
        if key not in self.values and not required:
            value = []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        if not value and not may_be_empty:
            raise self.wrong(key, "a list with at least one string")
        return [self._text(item, key) for item in value]

    def _text(self, value: str, key: str) -> str:
        if not all(is_text(text) for text in (key, value)):
            raise ArtifactError(f"{key!r} in the artifact's {self.what} is not valid Unicode, or has a NUL")
        return value


def _payload_type(info: _Document) -> str | None:
    payloads = info.values.get("payloads")
    if not isinstance(payloads, list) or len(payloads) != 1:
        raise info.wrong("payloads", "a list with exactly one payload")
    payload = _Document("header-info payloads", payloads[0])
    if "type" in payload.values and payload.values["type"] is None:
        return None
    return payload.string("type", required=True)


def _check_type(type_info: _Document, payload_type: str | None) -> None:
    # mender-artifact leaves the type of a rootfs-image out or empty, in every version.
    if payload_type == "rootfs-image":
        return
    if "type" not in type_info.values or type_info.values["type"] != payload_type:
        raise type_info.wrong("type", f"the payload type {payload_type!r} of header-info")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return f"the string {value[:60]!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else "a number"


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _order(member: Member | None, expected: str) -> ArtifactError:
    found = "its end" if member is None else repr(member.name)
    return ArtifactError(f"the artifact's header has {found} where {expected} belongs")
