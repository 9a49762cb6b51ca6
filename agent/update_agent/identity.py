# SPDX-License-Identifier: Apache-2.0
"""Who this device is: `key=value` programs and the identity made from one (device-api.md section 2)."""

from __future__ import annotations

import os

from update_agent import proc
from update_agent.errors import ServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.config import Config

PROGRAM_TIMEOUT_S = 10.0


def parse_pairs(output: bytes, source: str) -> dict[str, list[str]]:
    """Lines `key=value`, split at the first `=`; a key printed more than once has all its values, in order.

    Empty lines are skipped. Raises ServerError for any other line without `=`, and for text that is no UTF-8.
    """
    pairs: dict[str, list[str]] = {}
    try:
        lines = output.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ServerError(f"the output of {source} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line:
            continue
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise ServerError(f"line {number} of the output of {source} is not key=value: {line[:80]!r}")
        pairs.setdefault(key, []).append(value)
    return pairs


def single_or_list(values: list[str]) -> str | list[str]:
    """A value as it goes over the wire: text, or an array for a key that occurred more than once."""
    return values[0] if len(values) == 1 else values


def run_program(path: str) -> dict[str, list[str]]:
    """The pairs a program prints. Raises ServerError if it fails, takes over 10 s, or prints other lines."""
    if not os.path.exists(path):
        raise ServerError(f"{path} does not exist", hint="is it in the image?")
    result, stdout, stderr = proc.output([path], timeout_s=PROGRAM_TIMEOUT_S)
    if not result.ok:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ServerError(f"{path} {result.describe()}", hint=last[:200])
    return parse_pairs(stdout, path)


def id_data(config: Config) -> str:
    """The identity as the server knows it: a JSON object with sorted keys and no spaces.

    The same output gives the same bytes; a changed identity is a new device to the server.
    """
    path = config.identity_script()
    pairs = run_program(path)
    if not pairs:
        raise ServerError(f"{path} printed no identity", hint="it must print at least one key=value line")
    identity = {key: single_or_list(values) for key, values in pairs.items()}
    import json  # `lean` writes ASCII only

    return json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
