# SPDX-License-Identifier: Apache-2.0
"""The former client's database: read as LMDB wrote it, taken over once, and never trusted."""

from __future__ import annotations

import base64
import json
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import mender_store
from update_agent.errors import StoreError
from update_agent.log import Log
from update_agent.mender_store import TRANSACTION, read
from update_agent.store import Store
from update_agent.update import from_text

# Written by `mdb_load -n` of LMDB 0.9.24: five keys and 60 others on a branch page and two leaf pages, one of
# the values on pages of its own.
AMD64 = lzma.decompress(
    base64.b85decode(
        "{Wp48S^xk9=GL@E0stWa8~^|S5YJf5;BWr|7hM1VYk+kMQz5um;a-"
        "ebBH)e<UtMM#Q2v^Q*59s=?ZU0nC}?l&A@(5iU6pJ2K8)vBrxJ{(x&$}usA5vC|2tN#oX3rK71vt`@oj-hRS}BUpeBpYBwV2"
        "Uq5#UjkX_Rl@e;Yi12>%SlSX~qy9Tlne;R*49OV3@oE&<Y3AB~D(mq>NQvMshsNA3YYwcvn^WlLr9;ce={taHmV0NGZyK$@w"
        "6LQ(Yh^h0%Qx#njai;L+`SvMqXxaQuqSjtBa@LP>fAN^JU<n)+*{1<tPw$8cS!jx+W<jvPsdmglK(*@6O7EV4_YU@9q(s<^W"
        "fGEob?kvGT(FeBpi!QG`X&@p6Xb+a#L!KxEFg7QcguM@tnDHa%6Jfb-iv=(BS*>i(<b9#M7HzuZorhbn+}W(X?Ber=%qD(Ws"
        "?~mD&Eh72-"
        "PX}VwqN;EZPJv)Umfw(i1kBO8N1JZ({QD_?M7tCnoObg3#3bgPKXWATq_7!Whlq;*>YBjSw7$;C7p!`aC8qG;p9&$0$&I&oR"
        "rjM{E~8Kk#1M?tfU=Ae)4tw^&XCe5z}FHS(#GtPQvwviZz5*b*it#9<Moh&PAT9uHcE`f0&GV5<9BWmDniW1z3SV3q_INHc*"
        "A%^XGRq}<FXwe2pxo6NK~+oYO){X7Lis{0uWxMC*3Pvja+drs#QDu!tOQ6PO|v2umMX>$Mot8s%awnu5?00FZEfZzcD97HSk"
        "vBYQl0ssI200dcD"
    )
)
I386 = lzma.decompress(
    base64.b85decode(
        "{Wp48S^xk9=GL@E0stWa8~^|S5YJf5;BWr|6I}oRX@GqSQz5um;a-UiA&wWF<Ik>-"
        "*)es?CgP+LPuB40xj=eLEA3XiLI)Ng1eR6yKS&O2&(C=F5=3eO)`;JLr!u0FWGx{26NNhbLq$@sQ+dq6Xf%Y;*=Z6}ykH7X8"
        "mBmx{k8r)ZR3Tg7}(GIO-OtfA)RG+OU6+V^VzzR`N_xgWUwN<MgBnjPJYRDGjRRof&4K&CEmjOkTumHj3&CU&$?E>B?z{z=8"
        "J|soXvR@(bYzk>3%CSxWTgq&qzwrORQqAZ-NZ(EC&ujko;_IK~MC7y0q4;erl2{aRMLs6+&@Vj%_)XHXJbgBmnGYbN|NH6}@"
        "kX9#Y%&x(C)3<@_bOpc{L*tO*$GCa61mVE^y7VQ2?!OGiD@>nV(oZQFG!I&a(saB5G&7M)+St9~l1j*_vACx^-lAG}U`-"
        "l9vB=Y)%L&Rn9v%Q=qMiOC*KUNxC|FO^SNiwdUp=*>hTICa&Kii1*SVuy^zNEraPxLB53eT&~QkDm~<PUT~?2tU*6$FNK=$#"
        "iI=wZt@SbL&C)d7T|N+TovT{fV>v=xd<AYcD-fc|&?_3|WuluV7dC`%z^psB+d?w;N1w%BXDITg*-"
        ">(3L=bHgKJ*`)P9r>UuHL7ghs^^vddU5u#0#BNd;rfQDl}af4m+@?zB^Y$Vx8aK+Ftkl^sm<w!Bk>C_$b8)*OlH*kj06N|N-"
        "00FNAfZzcD{Dwb+vBYQl0ssI200dcD"
    )
)

VALUES = {
    "artifact-group": "beta",
    "artifact-name": "release-7",
    "artifact-provides": '{"app":"' + "b" * 5000 + '"}',
    "standalone-state": '{"Version":1}',
    TRANSACTION: "1",
}
# In the second page of AMD64, which describes the last transaction.
ROOT, TRANSACTION_AT = 4096 + 128, 4096 + 144
BOTH = pytest.mark.parametrize("data", [AMD64, I386], ids=["64-bit", "32-bit"])


def found(path: Path, data: bytes) -> dict[str, str] | None:
    path.write_bytes(data)
    return read(str(path), None)


@BOTH
def test_what_an_update_needs_is_read(tmp_path: Path, data: bytes) -> None:
    assert found(tmp_path / "mender-store", data) == VALUES
    assert read(str(tmp_path / "mender-store"), "1") is None
    assert read(str(tmp_path / "mender-store"), "0") == VALUES


@BOTH
@given(position=st.floats(0, 1, exclude_max=True), garbage=st.binary(min_size=1, max_size=24))
def test_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, position: float, garbage: bytes
) -> None:
    """Nothing but StoreError comes up, and nothing hangs. Most of the file is zeros, which are left alone."""
    used = [index for index in range(len(data)) if data[index]]
    start = used[int(position * len(used))]
    broken = data[:start] + garbage + data[start + len(garbage) :]
    try:
        found(tmp_path_factory.getbasetemp() / "damaged", broken)
    except StoreError:
        pass


@BOTH
def test_every_truncation_is_seen(tmp_path: Path, data: bytes) -> None:
    for length in range(0, len(data) - 4096, 512):
        with pytest.raises(StoreError, match=r"cannot use the former client's state, .*damaged\?"):
            found(tmp_path / "mender-store", data[:length])


@pytest.mark.parametrize(
    ("offset", "replacement", "reason"),
    [
        (16, b"SQLite", "it is no LMDB file"),
        (20, b"\2", "its data version is 2"),
        (40, struct.pack("<I", 1), "its page size is 1"),
        (40, struct.pack("<I", 1 << 30), "its page size is 1073741824"),
        (ROOT, struct.pack("<Q", 0), "page 0 is damaged"),
        (ROOT, struct.pack("<Q", 1 << 63), "it ends before page 9223372036854775808"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, offset: int, replacement: bytes, reason: str) -> None:
    data = AMD64[:offset] + replacement + AMD64[offset + len(replacement) :]
    with pytest.raises(StoreError, match=reason):
        found(tmp_path / "mender-store", data)


def test_pages_in_circles_end(tmp_path: Path) -> None:
    (root,) = struct.unpack_from("<Q", AMD64, ROOT)
    start = root * 4096
    (at,) = struct.unpack_from("<H", AMD64, start + 16)
    data = bytearray(AMD64)
    struct.pack_into("<HHH", data, start + at, root, 0, 0)  # its first child is itself
    with pytest.raises(StoreError, match="its pages go in circles"):
        found(tmp_path / "mender-store", bytes(data))


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "mender-store", "wb") as file:
        file.write(AMD64)
        file.truncate(1 << 40)
    with pytest.raises(StoreError, match="more than 16 MiB"):
        read(str(tmp_path / "mender-store"), None)


# In the store


def opened(directory: Path) -> Store:
    return Store(str(directory), Log(level="error"))


def test_the_store_takes_over_once_and_again_when_the_former_client_was_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mender-store").write_bytes(AMD64)
    store = Store(str(tmp_path), Log())
    assert store.get("artifact-name") == "release-7"
    assert "Taking over what another client saved" in capsys.readouterr().err
    store.write({"artifact-name": "release-8", "ours": "x"})
    store = Store(str(tmp_path), Log())
    store.reload()
    assert (store.get("artifact-name"), store.get("ours")) == ("release-8", "x")
    assert "Taking over" not in capsys.readouterr().err

    data = bytearray(AMD64)
    struct.pack_into("<Q", data, TRANSACTION_AT, 3)  # as after another transaction
    (tmp_path / "mender-store").write_bytes(data)
    store = opened(tmp_path)
    assert (store.get("artifact-name"), store.get("ours")) == ("release-7", None)
    assert (tmp_path / "mender-store").read_bytes() == data


def test_a_damaged_one_leaves_what_we_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path).write({"artifact-name": "release-8"})
    (tmp_path / "mender-store").write_bytes(AMD64[:5000])
    assert opened(tmp_path).get("artifact-name") == "release-8"
    assert f"cannot use the former client's state, {tmp_path}/mender-store" in capsys.readouterr().err


def test_what_cannot_be_written_down_counts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("update_agent.store.replace", refuse)
    (tmp_path / "mender-store").write_bytes(AMD64)
    store = opened(tmp_path)
    store.reload()
    assert store.get("artifact-name") == "release-7"
    assert "Read-only file system" in capsys.readouterr().err


# The saved deployment

OLD = {
    "Version": 1,
    "Name": "reboot",
    "UpdateInfo": {
        "ID": "3f1c",
        "Artifact": {
            "Source": {"URI": "https://example.com/a", "Expire": "2026-01-01T00:00:00Z"},
            "device_types_compatible": ["virt64"],
            "artifact_name": "release-2",
        },
    },
}


def current(state: object, uncommitted: object = None) -> str:
    text = None if uncommitted is None else json.dumps(uncommitted)
    return mender_store._current(json.dumps(state), text)


def test_version_one_is_brought_to_two() -> None:
    name, update = from_text(current(OLD))
    assert (name, update.id, update.uri) == ("reboot", "3f1c", "https://example.com/a")
    assert (update.payload_type, update.artifact_name) == ("rootfs-image", "release-2")
    assert (update.needs_reboot, update.supports_rollback) == ("Yes", "Yes")


def test_the_uncommitted_one_of_the_same_deployment_counts() -> None:
    new = {"Version": 2, "Name": "after-reboot", "UpdateInfo": {"ID": "3f1c"}}
    assert json.loads(current(OLD, new)) == new
    other = {**new, "UpdateInfo": {"ID": "other"}}
    assert json.loads(current(OLD, other))["Name"] == "reboot"
    assert json.loads(current({**new, "Version": 3}, new)) == new
    assert json.loads(current({**OLD, "Version": 2}, new)) == {**OLD, "Version": 2}


@pytest.mark.parametrize("state", [[], None, {"Version": 3}, {"Version": 1}, {"Version": 1, "UpdateInfo": 5}])
def test_what_nobody_understands_is_an_error_of_the_daemon(state: object) -> None:
    with pytest.raises(StoreError):
        from_text(current(state))
