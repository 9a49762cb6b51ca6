# SPDX-License-Identifier: Apache-2.0
"""Images, their artifacts and the state scripts in them, by our classes; read with the agent's reader."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, ROOT, STUB, Build

from update_agent.artifact import Reader
from update_agent.scripts import parse_name
from update_agent.states import ACTIONS, STATES

INHERIT = 'INHERIT += "update"\n'
MKE2FS = shutil.which("mke2fs") or "/sbin/mke2fs"
TOOLS = {"ours": f"{ROOT}/scripts/ota artifact", "mender-artifact": "mender-artifact"}
needs_mke2fs = pytest.mark.skipif(not Path(MKE2FS).exists(), reason="mke2fs is not installed")

RECIPE = """# SPDX-License-Identifier: MIT
SUMMARY = "Scripts of a test"
LICENSE = "MIT"
SRC_URI = "{uris}"
inherit update-state-scripts
"""


def product(folder: Path, *scripts: str, text: str = "#!/bin/sh\n", name: str = "our-scripts") -> Path:
    """A product's layer with one recipe of state scripts."""
    layer = folder / f"meta-{name}"
    recipe = layer / "recipes-core" / name
    (layer / "conf").mkdir(parents=True)
    (recipe / "files").mkdir(parents=True)
    (layer / "conf/layer.conf").write_text(
        f'BBFILES += "${{LAYERDIR}}/recipes-*/*/*.bb"\nBBFILE_COLLECTIONS += "{name}"\n'
        f'BBFILE_PATTERN_{name} = "^${{LAYERDIR}}/"\nLAYERSERIES_COMPAT_{name} = "wrynose"\n'
    )
    (recipe / f"{name}.bb").write_text(RECIPE.format(uris=" ".join(f"file://{script}" for script in scripts)))
    for script in scripts:
        (recipe / "files" / script).write_text(text)
    return layer


def run_scripts(folder: Path, layer: Path, *tasks: str) -> dict[str, object]:
    build = Build(folder / "build", more_layers=(layer,))
    answer = build.ask({"our-scripts": {"tasks": [*tasks], "values": ["D", "DEPLOYDIR"]}})
    assert answer.get("failed") is None
    found: dict[str, object] = answer["recipes"]["our-scripts"]
    return found


def test_scripts_land_where_they_run(tmp_path: Path) -> None:
    """One of each state: those of the running system in its root, those of the update in the artifact."""
    letters = {"Enter": "E", "Leave": "L", "Error": "!"}
    names = [f"{s.name}_{a}_10_x" for s in STATES for a in ACTIONS if letters[a] in s.hooks]
    layer = product(tmp_path, *names)
    found = run_scripts(tmp_path, layer, "do_unpack", "do_compile", "do_install", "do_deploy")
    assert "failed" not in found, found["failed"]
    values = found["values"]
    assert isinstance(values, dict)
    rootfs = sorted((Path(values["D"]) / "etc/mender/scripts").iterdir())
    artifact = sorted((Path(values["DEPLOYDIR"]) / "update-state-scripts/our-scripts").iterdir())
    assert sorted(path.name for path in [*rootfs, *artifact]) == sorted(names)
    assert {path.name.split("_")[0] for path in rootfs} == {"Idle", "Sync", "Download"}
    assert {path.name[:8] for path in artifact} == {"Artifact"}
    assert {path.stat().st_mode & 0o777 for path in [*rootfs, *artifact]} == {0o755}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ArtifactInstal_Enter_10", "no state ArtifactInstal; ArtifactInstall?"),
        ("ArtifactInstall_Entry_10", "no action Entry; Enter, Leave, Error"),
        ("ArtifactInstall_Enter_1", "not STATE_ACTION_NN"),
        ("ArtifactInstall_Enter_10-migrate", "not STATE_ACTION_NN"),
        ("Idle_Error_10", "Idle has no Error, the script would never run"),
        ("ArtifactFailure_Error_00", "ArtifactFailure has no Error"),
        ("migrate.sh", "not STATE_ACTION_NN"),
    ],
)
def test_a_bad_name_stops_the_parsing(tmp_path: Path, name: str, complaint: str) -> None:
    found = run_scripts(tmp_path, product(tmp_path, "Idle_Enter_00", name))
    assert complaint in str(found["failed"])


def test_a_script_without_an_interpreter_stops_the_build(tmp_path: Path) -> None:
    layer = product(tmp_path, "Idle_Enter_00", text="echo hello\n")
    found = run_scripts(tmp_path, layer, "do_unpack", "do_compile")
    assert "Idle_Enter_00: its first line does not name an interpreter" in str(found["failed"])


@pytest.fixture(scope="module")
def layer_library() -> Iterator[object]:
    import sys

    sys.path.insert(0, str(LAYER / "lib"))
    from update_layer import statescripts  # type: ignore[import-not-found]

    yield statescripts
    sys.path.remove(str(LAYER / "lib"))


def test_the_class_and_the_agent_agree_on_names(layer_library: object) -> None:
    """What the class lets through, the agent runs; what the agent does not know, the class refuses."""
    for state in [*(state.name for state in STATES), "ArtifactDownload", ""]:
        for action in (*ACTIONS, "Exit"):
            for rest in ("00", "99_x", "10_a_b", "1", "100", "10_", "10-x", "10_a b", "٣٣"):
                name = f"{state}_{action}_{rest}"
                refused = layer_library.problem(name, str(ROOT))  # type: ignore[attr-defined]
                if not refused or "never run" in refused:
                    assert parse_name(name), name
                else:
                    assert not parse_name(name), (name, refused)


def test_the_examples_are_what_they_say(tmp_path: Path) -> None:
    found = Build(tmp_path / "build").ask(
        {
            "update-state-scripts-example": {
                "values": ["UPDATE_STATE_SCRIPTS_ROOTFS", "UPDATE_STATE_SCRIPTS_ARTIFACT"]
            }
        }
    )
    assert found["recipes"]["update-state-scripts-example"]["values"] == {
        "UPDATE_STATE_SCRIPTS_ROOTFS": "Download_Enter_10_quiet-hours",
        "UPDATE_STATE_SCRIPTS_ARTIFACT": "ArtifactCommit_Enter_50_self-test",
    }


def image(
    folder: Path, tool: str, conf: str, layer: Path, image: str = "update-image-minimal"
) -> dict[str, Path]:
    """Deploy the scripts, make the root file system, its ext4 and its artifact."""
    if shutil.which(tool.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{tool.split(maxsplit=1)[0]} is not installed")
    conf = (
        f'{INHERIT}UPDATE_ARTIFACT_TOOL = "{tool}"\nUPDATE_ROOTFS_SIZE_MB = "8"\n'
        f'UPDATE_ARTIFACT_NAME = "product-1"\nUPDATE_STATE_SCRIPT_RECIPES = "our-scripts"\n{conf}'
    )
    build = Build(folder / "build", conf=conf, more_layers=(layer,))
    names = ("IMAGE_ROOTFS", "IMGDEPLOYDIR", "IMAGE_NAME", "DEPLOY_DIR_IMAGE")
    answer = build.ask(
        {"our-scripts": {"tasks": ["do_unpack", "do_deploy"], "values": ["DEPLOYDIR", *names[3:]]}}
    )
    deployed = answer["recipes"]["our-scripts"]["values"]
    shutil.copytree(deployed["DEPLOYDIR"], deployed["DEPLOY_DIR_IMAGE"], dirs_exist_ok=True)
    # Of a recipe that was on the list once; nobody cleans a deploy directory.
    stale = Path(deployed["DEPLOY_DIR_IMAGE"]) / "update-state-scripts/former/ArtifactInstall_Enter_00_stale"
    stale.parent.mkdir()
    stale.write_text("#!/bin/sh\n")
    values = build.run(image, "do_rootfs", "do_image_ext4", "do_image_mender", values=names)
    base = Path(values["IMGDEPLOYDIR"]) / values["IMAGE_NAME"]
    return {
        "rootfs": Path(values["IMAGE_ROOTFS"]),
        "ext4": base.with_name(base.name + ".ext4"),
        "mender": base.with_name(base.name + ".mender"),
    }


@needs_mke2fs
@pytest.mark.parametrize("tool", TOOLS)
def test_artifact_of_an_image(tmp_path: Path, tool: str) -> None:
    """The artifact holds the image and the scripts of its recipes; the agent's reader says so."""
    layer = product(
        tmp_path, "Sync_Enter_10", "ArtifactInstall_Leave_20_migrate", "ArtifactCommit_Enter_50_check"
    )
    made = image(tmp_path, TOOLS[tool], "", layer)
    reader = Reader(io.BytesIO(made["mender"].read_bytes()))
    header = reader.header
    assert (header.name, header.payload_type, header.device_types) == (
        "product-1",
        "rootfs-image",
        ["virt64"],
    )
    assert sorted(name for name, _ in header.scripts) == [
        "ArtifactCommit_Enter_50_check",
        "ArtifactInstall_Leave_20_migrate",
    ]
    (content,) = [file.read(1 << 30) for file in reader.files()]
    assert made["ext4"].stat().st_size == 8 << 20
    assert content == made["ext4"].read_bytes()[: len(content)]
    bootstrap = Reader(io.BytesIO((made["rootfs"] / "data/mender/bootstrap.mender").read_bytes())).header
    assert (bootstrap.name, bootstrap.device_types) == ("product-1", ["virt64"])


@needs_mke2fs
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("tool", TOOLS)
def test_artifact_is_signed_when_a_key_is_given(tmp_path: Path, tool: str) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    openssl = ["openssl", "pkey", "-in", private, "-pubout", "-out", public]
    # mender-artifact 3.9 takes no EC key in PKCS#8.
    make = ["openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", private]
    for command in (make, openssl):
        subprocess.run(command, check=True, capture_output=True)
    conf = f'UPDATE_SIGNED = "1"\nUPDATE_SIGNING_KEY = "{private}"\nUPDATE_VERIFY_KEYS = "{public}"\n'
    made = image(tmp_path, TOOLS[tool], conf, product(tmp_path, "Sync_Enter_10"))
    reader = Reader(io.BytesIO(made["mender"].read_bytes()), verify_keys=[str(public)])
    assert reader.header.signed
    assert reader.header.scripts == []


@needs_mke2fs
def test_root_file_system_of_an_image(tmp_path: Path) -> None:
    made = image(tmp_path, TOOLS["ours"], "", product(tmp_path, "Sync_Enter_10"))
    lines = (made["rootfs"] / "etc/fstab").read_text().splitlines()
    assert lines == [
        "/dev/root\t/\tauto\tdefaults\t1\t1",
        "/dev/mmcblk0p4 /data ext4 defaults,nofail,noatime 0 2",
    ]


def test_image_is_as_large_as_its_slot(tmp_path: Path) -> None:
    names = ["IMAGE_ROOTFS_SIZE", "IMAGE_ROOTFS_MAXSIZE", "IMAGE_FSTYPES", "IMAGE_INSTALL", "WKS_FILE"]
    conf = INHERIT + 'UPDATE_ROOTFS_SIZE_MB = "300"\nUPDATE_STATE_SCRIPT_RECIPES = "our-scripts"\n'
    answer = Build(tmp_path / "build", conf=conf).ask({"update-image-minimal": {"values": names}})
    values = answer["recipes"]["update-image-minimal"]["values"]
    assert values["IMAGE_ROOTFS_SIZE"] == values["IMAGE_ROOTFS_MAXSIZE"] == str(300 * 1024)
    assert {"wic", "wic.bmap", "mender", "ext4"} == set(values["IMAGE_FSTYPES"].split())
    assert {"kernel-image", "update-agent", "update-data", "our-scripts"} <= set(
        values["IMAGE_INSTALL"].split()
    )
    assert (LAYER / "files/wic" / values["WKS_FILE"]).exists()


def example(name: str) -> str:
    """The lines to paste with which a class begins."""
    (path,) = LAYER.glob(f"classes-*/{name}.bbclass")
    comment = re.match(r"(?:#.*\n)+", path.read_text())
    assert comment
    lines = [line[6:] for line in comment[0].splitlines() if line.startswith("#     ")]
    assert lines, f"{name} begins without an example"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in LAYER.glob("classes-recipe/*.bbclass")))
def test_the_example_of_a_class_is_one_to_paste(tmp_path: Path, name: str) -> None:
    """As a recipe of a product's layer, with what it names there; up to what can be made of it here."""
    layer = product(tmp_path, "ArtifactInstall_Leave_10_migrate", name="our-state-scripts")
    recipes = layer / "recipes-core"
    night = '{"point": "ArtifactReboot_Enter", "when": {"outside": "02:00", "lasting_s": 7200}}\n'
    idle = (
        '{"point": "ArtifactInstall_Enter", "limit_s": 86400, "at_limit": "continue",\n'
        ' "when": {"program": "/usr/libexec/our-product/machine-is-idle", "interval_s": 300}}\n'
    )
    files = {
        "10-night.json": night,
        "20-idle.json": idle,
        "machine-is-idle": "#!/bin/sh\n",
        "fw_env.config.in": "@@UPDATE_STORAGE@@\n",
    }
    for recipe in ("pasted", "our-pause-hooks"):
        (recipes / recipe / "files").mkdir(parents=True)
        for file, text in files.items():
            (recipes / recipe / "files" / file).write_text(text)
    (recipes / "our-pause-hooks/our-pause-hooks.bb").write_text(
        'SRC_URI = "file://10-night.json"\ninherit update-pause-hooks\n'
    )
    for script in ("Sync_Enter_10_quiet-hours", "ArtifactInstall_Leave_20_migrate"):
        (recipes / "pasted/files" / script).write_text("#!/bin/sh\n")
    (recipes / "pasted/pasted.bb").write_text(example(name))
    conf = f'{INHERIT}UPDATE_ARTIFACT_TOOL = "true"\n'
    build = Build(tmp_path / "build", more_layers=(layer,), conf=conf)
    image = "core-image" in example(name)
    tasks = ["do_rootfs"] if image else ["do_unpack", "do_compile", "do_install"]
    found = build.ask({"pasted": {"tasks": tasks, "values": ["D", "B", "IMAGE_FSTYPES"]}})
    assert found.get("failed") is None
    assert "failed" not in found["recipes"]["pasted"], found["recipes"]["pasted"]["failed"]
    if image:
        assert "mender" in found["recipes"]["pasted"]["values"]["IMAGE_FSTYPES"].split()


def test_the_example_of_the_switch_turns_the_layer_on(tmp_path: Path) -> None:
    values = Build(tmp_path / "build", conf=example("update")).ask()["values"]
    assert values["UPDATE_ENABLED"] == "1"
    assert values["UPDATE_ARTIFACT_NAME"] == "product-1.4.0"


@pytest.mark.parametrize(
    ("boot_files", "complaint"),
    [
        ("zImage", 'UPDATE_DEVICETREE = "am335x-boneblack.dtb", which the image does not have in /boot'),
        ("zImage dtb/ti/omap/am335x-boneblack.dtb", "there is: dtb/ti/omap/am335x-boneblack.dtb, zImage"),
        ("Image am335x-boneblack.dtb", 'UPDATE_KERNEL = "zImage", which the image does not have'),
        ("", "there is: nothing"),
    ],
)
def test_an_image_without_what_boot_scr_starts_stops_the_build(
    tmp_path: Path, boot_files: str, complaint: str
) -> None:
    conf = f'{INHERIT}UPDATE_ARTIFACT_TOOL = "true"\nSTUB_BOOT_FILES:update-u-boot = "{boot_files}"\n'
    build = Build(tmp_path / "build", machine="beaglebone-yocto", conf=conf)
    found = build.ask({"update-image-minimal": {"tasks": ["do_rootfs"]}})["recipes"]
    assert complaint in found["update-image-minimal"]["failed"]


def test_the_stub_is_not_the_layer() -> None:
    """The stub must never carry what the layer is to provide."""
    text = "".join(path.read_text() for path in STUB.rglob("*") if path.is_file())
    assert json.dumps(text).count("UPDATE_") == 0
