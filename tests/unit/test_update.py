# SPDX-License-Identifier: Apache-2.0
"""The update record: saved and read back, and what its end leaves installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.errors import StoreError
from update_agent.log import Log
from update_agent.store import Store
from update_agent.update import Update, commit, from_text, installed

HEADER = {
    "payload_type": "rootfs-image",
    "name": "release-2",
    "group": "",
    "device_types": ["virt64", "raspberrypi5"],
    "provides": {"rootfs-image.version": "release-2"},
    "clears": ["rootfs-image.*"],
}


def accepted(**changes: object) -> Update:
    update = Update("3f1c", "https://example.com/a.mender")
    update.accept({**HEADER, **changes})
    return update


def facts(update: Update) -> dict[str, object]:
    return {name: getattr(update, name) for name in Update.__slots__}


@pytest.mark.parametrize("needs_reboot", ["", "No", "Yes", "Automatic"])
@pytest.mark.parametrize("supports_rollback", ["", "No", "Yes"])
def test_saved_and_read_back(needs_reboot: str, supports_rollback: str) -> None:
    update = accepted()
    update.expire, update.save_count, update.all_rollbacks_successful = "2030-01-01T00:00:00Z", 7, True
    update.needs_reboot, update.supports_rollback = needs_reboot, supports_rollback
    name, read = from_text(update.to_text("update-install"))
    assert name == "update-install"
    assert facts(read) == facts(update)


def test_before_a_header_was_accepted_there_is_no_payload_type() -> None:
    update = Update("3f1c", "https://example.com/a.mender")
    document = json.loads(update.to_text("update-store"))
    assert document["UpdateInfo"]["Artifact"]["PayloadTypes"] == []
    assert from_text(json.dumps(document))[1].payload_type is None


def test_no_payload_and_no_provides_are_kept_apart_from_empty_ones() -> None:
    nothing = accepted(payload_type=None, provides=None, clears=None)
    empty = accepted(payload_type=None, provides={}, clears=[])
    assert from_text(nothing.to_text("cleanup"))[1].provides is None
    read = from_text(empty.to_text("cleanup"))[1]
    assert (read.payload_type, read.provides, read.clears) == ("", {}, [])


def test_the_words_of_the_saved_form_are_the_reference_s() -> None:
    update = accepted()
    update.needs_reboot, update.supports_rollback = "Automatic", "Yes"
    info = json.loads(update.to_text("reboot"))["UpdateInfo"]
    assert info["RebootRequested"] == ["reboot-type-automatic"]
    assert info["SupportsRollback"] == "rollback-supported"


def test_a_record_of_the_reference_is_understood() -> None:
    text = json.dumps(
        {
            "Version": 2,
            "Name": "reboot",
            "UpdateInfo": {
                "ID": "3f1c",
                "Artifact": {"Source": {"URI": "u"}, "PayloadTypes": ["rootfs-image"], "artifact_name": "n"},
                "RebootRequested": ["reboot-type-custom"],
                "SupportsRollback": "rollback-not-supported",
                "StateDataStoreCount": 3,
            },
        }
    )
    name, update = from_text(text)
    assert (name, update.id, update.payload_type) == ("reboot", "3f1c", "rootfs-image")
    assert (update.needs_reboot, update.supports_rollback, update.save_count) == ("Yes", "No", 3)


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_another_version_is_refused_by_name(version: object) -> None:
    document = {**json.loads(accepted().to_text("reboot")), "Version": version}
    with pytest.raises(StoreError, match="version"):
        from_text(json.dumps(document))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_is_saved_is_an_update_or_an_error(info: Any) -> None:
    for document in (info, {"Version": 2, "Name": "reboot", "UpdateInfo": info}):
        try:
            from_text(json.dumps(document))
        except StoreError:
            pass


def test_text_that_was_cut_anywhere_is_an_error() -> None:
    text = accepted().to_text("update-install")
    for length in range(len(text)):
        with pytest.raises(StoreError):
            from_text(text[:length])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path), Log(level="error"))
    made.write(
        {"artifact-name": "release-1", "artifact-group": "blue", "artifact-provides": '{"app.version":"5"}'}
    )
    return made


def test_a_clean_commit_is_one_write_of_everything(store: Store) -> None:
    store.write(commit(store, accepted(group="green"), clean=True, with_provides=True))
    assert installed(store) == {
        "artifact_name": "release-2",
        "artifact_group": "green",
        "app.version": "5",
        "rootfs-image.version": "release-2",
    }


def test_an_inconsistent_commit_keeps_the_old_provides(store: Store) -> None:
    store.write(commit(store, accepted(), clean=False, with_provides=False))
    assert installed(store) == {
        "artifact_name": "release-2_INCONSISTENT",
        "artifact_group": "blue",
        "app.version": "5",
    }


def test_a_name_is_marked_inconsistent_once(store: Store) -> None:
    for _ in range(2):
        store.write(commit(store, accepted(name="x_INCONSISTENT"), clean=False, with_provides=False))
    assert store.get("artifact-name") == "x_INCONSISTENT"


def test_what_is_not_there_is_no_entry(store: Store) -> None:
    store.write(commit(store, accepted(provides=None, clears=None), clean=True, with_provides=True))
    assert (store.get("artifact-group"), store.get("artifact-provides")) == (None, None)


def test_nothing_installed_is_unknown(tmp_path: Path) -> None:
    assert installed(Store(str(tmp_path), Log(level="error"))) == {"artifact_name": "unknown"}


def test_damaged_provides_do_not_stop_a_device(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.write({"artifact-provides": "{"})
    assert installed(store)["artifact_name"] == "release-1"
