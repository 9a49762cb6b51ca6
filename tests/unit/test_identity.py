# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import identity
from update_agent.config import Config
from update_agent.errors import ServerError


def script(config: Config, text: str) -> None:
    path = Path(config.identity_script())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.data_dir = str(tmp_path)
    return config


def test_sorted_without_spaces_and_repeated_keys_as_an_array(config: Config) -> None:
    script(config, "echo serial=7; echo mac=00:01; echo key=a=b; echo mac=00:02; echo name=Gerät")
    assert identity.id_data(config) == '{"key":"a=b","mac":["00:01","00:02"],"name":"Gerät","serial":"7"}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo mac=1; echo nonsense", "line 2 .*'nonsense'"),
        ("echo mac=1; echo no eth0 >&2; exit 3", "exited with 3.*no eth0"),
        ("true", "no identity"),
        ("echo =1", "not key=value"),
        ("printf 'a=\\377\\n'", "UTF-8"),
    ],
)
def test_what_is_no_identity(config: Config, text: str, reason: str) -> None:
    script(config, text)
    with pytest.raises(ServerError, match=reason):
        identity.id_data(config)


def test_a_missing_or_unstartable_script(config: Config) -> None:
    with pytest.raises(ServerError, match="does not exist"):
        identity.id_data(config)
    script(config, "")
    os.chmod(config.identity_script(), 0o644)
    with pytest.raises(Exception, match="cannot start"):
        identity.id_data(config)


def test_a_script_that_hangs_is_ended(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PROGRAM_TIMEOUT_S", 0.2)
    script(config, "echo mac=1; exec sleep 600")
    with pytest.raises(ServerError, match="time limit"):
        identity.id_data(config)


@given(st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_pairs_survive_printing(pairs: list[tuple[str, str]]) -> None:
    clean = [
        (key, value) for key, value in pairs if not set("\r\n=") & set(key) and not set("\r\n") & set(value)
    ]
    output = "".join(f"{key}={value}\n" for key, value in clean).encode(errors="ignore")
    expected: dict[str, list[str]] = {}
    for key, value in clean:
        expected.setdefault(key, []).append(value)
    if not any(0xD800 <= ord(c) < 0xE000 for key, value in clean for c in key + value):
        assert identity.parse_pairs(output, "test") == expected
