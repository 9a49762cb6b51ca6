# SPDX-License-Identifier: Apache-2.0
"""mender.conf: two files, one table of keys, and what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from update_agent.config import KEYS, Config, load
from update_agent.errors import ConfigError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, variable in (("conf", "CONF"), ("data", "DATA"), ("store", "DATASTORE")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"MENDER_{variable}_DIR", str(tmp_path / name))
    return tmp_path


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def main_file(places: Path, document: object) -> Config:
    write(places / "conf/mender.conf", document)
    return load()


def test_without_files_there_are_defaults(places: Path) -> None:
    config = load()
    assert (config.update_poll_interval_s, config.inventory_poll_interval_s) == (1800, 28800)
    assert (config.servers, config.artifact_verify_keys, config.warnings) == ([], [], [])
    assert config.scripts_rootfs() == str(places / "conf/scripts")
    assert config.scripts_artifact() == str(places / "store/scripts")
    assert config.tree_dir() == str(places / "store/modules/v3/payloads/0000/tree")


def test_every_key_has_an_attribute_of_its_own() -> None:
    config = Config()
    attributes = [attribute for _, _, _, attribute in KEYS]
    assert len(set(attributes)) == len(KEYS)
    for _, _, default, attribute in KEYS:
        assert getattr(config, attribute) == default


@pytest.mark.parametrize(
    ("key", "kind", "attribute"), [(key, kind, attribute) for key, kind, _, attribute in KEYS]
)
def test_every_key_is_read_in_any_case(places: Path, key: str, kind: str, attribute: str) -> None:
    if key == "DeviceTier":
        value: Any = "micro"
    else:
        value = {
            "text": "text",
            "texts": ["a", "b"],
            "bool": not getattr(Config(), attribute),
            "servers": [{"ServerURL": "https://a"}],
        }.get(kind, 17)
    group, dot, name = key.lower().partition(".")
    config = main_file(places, {group.upper(): {name: value}} if dot else {key.swapcase(): value})
    assert getattr(config, attribute) == (["https://a"] if kind == "servers" else value)
    assert config.warnings == []


def test_the_main_file_overrides_the_fallback_key_by_key(places: Path) -> None:
    write(
        places / "store/mender.conf",
        {"ServerURL": "https://fallback", "TenantToken": "t", "RetryPollCount": 3},
    )
    config = main_file(places, {"ServerURL": "https://main"})
    assert (config.servers, config.tenant_token, config.retry_poll_count) == (["https://main"], "t", 3)


def test_one_file_may_say_server_url_and_the_other_servers(places: Path) -> None:
    write(places / "store/mender.conf", {"Servers": [{"ServerURL": "https://a"}]})
    assert main_file(places, {"ServerURL": "https://main"}).servers == ["https://main"]


def test_servers_keep_their_order_without_duplicates(places: Path) -> None:
    urls = ["https://b", "https://a", "https://b"]
    assert main_file(places, {"Servers": [{"serverurl": url} for url in urls]}).servers == [
        "https://b",
        "https://a",
    ]


@pytest.mark.parametrize("value", [0, -5])
def test_no_interval_means_the_default(places: Path, value: int) -> None:
    config = main_file(places, {"UpdatePollIntervalSeconds": value, "StateScriptTimeoutSeconds": value})
    assert (config.update_poll_interval_s, config.script_timeout_s) == (1800, 3600)


@pytest.mark.parametrize("value", [0, -5])
def test_no_size_means_the_default_even_if_the_fallback_has_one(places: Path, value: int) -> None:
    write(places / "store/mender.conf", {"ScriptOutputLimitBytes": 5000, "ModuleTimeoutSeconds": 5})
    assert load().script_output_limit_bytes == 5000
    config = main_file(places, {"ScriptOutputLimitBytes": value, "ModuleTimeoutSeconds": value})
    assert (config.script_output_limit_bytes, config.module_timeout_s) == (256 << 10, 14400)


def test_less_than_no_retries_is_the_default(places: Path) -> None:
    assert main_file(places, {"RetryPollCount": -3}).retry_poll_count == 0


def test_maps_live_twice_the_poll_interval_unless_told(places: Path) -> None:
    assert main_file(places, {"UpdatePollIntervalSeconds": 100}).map_expiration_s == 200
    assert main_file(places, {"UpdateControlMapExpirationTimeSeconds": 7}).map_expiration_s == 7
    assert main_file(places, {"UpdateControlMapPollIntervalSeconds": 9}).map_poll_interval_s == 9


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SkipVerify", "yes", "true or false"),
        ("UpdatePollIntervalSeconds", "30", "a whole number"),
        ("UpdatePollIntervalSeconds", 1.5, "a whole number"),
        ("RetryPollCount", True, "a whole number"),
        ("ModuleTimeoutSeconds", 1 << 31, "a whole number up to 2147483647"),
        ("ModuleTimeoutSeconds", 10**400, "a whole number up to 2147483647"),
        ("ServerURL", 5, "text"),
        ("ArtifactVerifyKeys", ["a", 1], "a list of texts"),
        ("Servers", [{"URL": "https://a"}], '{"ServerURL"'),
        ("Servers", "https://a", "a list"),
        ("HttpsClient", {"Key": 1}, "HttpsClient.Key is ignored, it must be text"),
        ("HttpsClient", "key.pem", "HttpsClient is ignored, it must be an object"),
        ("dbus", False, "dbus is ignored, it must be an object"),
    ],
)
def test_a_wrong_type_is_a_warning(places: Path, key: str, value: object, words: str) -> None:
    config = main_file(places, {key: value, "TenantToken": "still read"})
    assert len(config.warnings) == 1
    assert words in config.warnings[0]
    assert str(places / "conf/mender.conf") in config.warnings[0]
    assert config.tenant_token == "still read"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "Expecting"),
        ("[]", "one JSON object"),
        ("\xff", ""),
        ({"ServerURL": "a", "Servers": [{"ServerURL": "b"}]}, "keep one of them"),
        ({"ArtifactVerifyKey": "a", "ArtifactVerifyKeys": ["b"]}, "keep one of them"),
        ({"RetryDownloadCount": 0}, "1 … 10000"),
        ({"RetryDownloadCount": 10001}, "1 … 10000"),
    ],
)
def test_a_broken_default_file_is_a_warning_and_a_named_one_an_error(
    places: Path, document: object, words: str
) -> None:
    config = main_file(places, document)
    assert len(config.warnings) == 1
    assert words in config.warnings[0]
    with pytest.raises(ConfigError, match="cannot use configuration file") as caught:
        load(path=str(places / "conf/mender.conf"))
    assert words in str(caught.value)


def test_keys_before_an_error_stay(places: Path) -> None:
    config = main_file(places, '{"TenantToken": "t", "RetryDownloadCount": 0}')
    assert config.tenant_token == "t"


def test_a_named_file_must_exist(places: Path) -> None:
    for option in ("path", "fallback"):
        with pytest.raises(ConfigError, match="does not exist"):
            load(**{option: str(places / "absent.conf")})


@pytest.mark.parametrize("tier", ["system", "huge"])
@pytest.mark.parametrize("where", ["conf", "store"])
def test_a_bad_tier_is_an_error_everywhere(places: Path, where: str, tier: str) -> None:
    write(places / where / "mender.conf", {"DeviceTier": tier})
    with pytest.raises(ConfigError, match=f"DeviceTier '{tier}' is not supported"):
        load()


def test_a_datastore_option_moves_the_fallback_file(places: Path) -> None:
    (places / "other").mkdir()
    write(places / "other/mender.conf", {"TenantToken": "other"})
    config = load(datastore=str(places / "other"), overrides={"skip_verify": True})
    assert (config.tenant_token, config.skip_verify) == ("other", True)
    assert config.key_file() == str(places / "other/mender-agent.pem")


@pytest.mark.parametrize("text", ["device_type=virt64\n", "device_type=virt64"])
def test_device_type(places: Path, text: str) -> None:
    write(places / "store/device_type", text)
    assert load().device_type() == "virt64"


@pytest.mark.parametrize(
    "text", ["", "\n", "device_type=\n", "virt64\n", "device_type=a\ndevice_type=b\n", "device_type=a\n\n"]
)
def test_more_or_less_than_one_device_type_is_an_error(places: Path, text: str) -> None:
    path = write(places / "store/device_type", text)
    with pytest.raises(ConfigError, match=f"{path} must hold one line"):
        load().device_type()


def test_a_missing_device_type_is_an_error_with_advice(places: Path) -> None:
    config = main_file(places, {"DeviceTypeFile": str(places / "elsewhere")})
    with pytest.raises(
        ConfigError, match=r"elsewhere: No such file or directory \(the image must contain it"
    ):
        config.device_type()
    write(places / "elsewhere", "device_type=x")
    assert config.device_type() == "x"
