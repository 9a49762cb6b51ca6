# SPDX-License-Identifier: Apache-2.0
"""Pause hooks by our class: what lands where, what stops the build; the agent reads what was installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.layer.bitbake import LAYER, SERIES, TASKS, Build

from update_agent import hooks

EXAMPLE = "update-pause-hooks-example"
FILES = LAYER / f"recipes-core/{EXAMPLE}/files"
NIGHT = {"point": "ArtifactReboot_Enter", "when": {"outside": "Mon..Fri 02:00", "lasting_s": 7200}}
ASK = {
    "point": "ArtifactInstall_Enter",
    "when": {"program": "/usr/libexec/ours/idle"},
    "limit_s": 60,
    "at_limit": "fail",
}
RECIPE = """# SPDX-License-Identifier: MIT
SUMMARY = "Hooks of a test"
LICENSE = "MIT"
SRC_URI = "{uris}"
{lines}
inherit update-pause-hooks
"""


def product(folder: Path, files: dict[str, str | dict[str, Any]], lines: str = "") -> Path:
    """A product's layer with one recipe of pause hooks."""
    layer = folder / "meta-ours"
    recipe = layer / "recipes-core/our-hooks"
    (layer / "conf").mkdir(parents=True)
    (recipe / "files").mkdir(parents=True)
    (layer / "conf/layer.conf").write_text(
        'BBFILES += "${LAYERDIR}/recipes-*/*/*.bb"\nBBFILE_COLLECTIONS += "ours"\n'
        'BBFILE_PATTERN_ours = "^${LAYERDIR}/"\nLAYERSERIES_COMPAT_ours = "scarthgap wrynose"\n'
    )
    uris = " ".join(f"file://{name}" for name in files)
    (recipe / "our-hooks.bb").write_text(RECIPE.format(uris=uris, lines=lines))
    for name, content in files.items():
        (recipe / "files" / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return layer


def built(folder: Path, layer: Path | None = None, recipe: str = "our-hooks", series: str = "wrynose") -> Any:
    build = Build(folder / "build", series=series, more_layers=(layer,) if layer else ())
    answer = build.ask({recipe: {"tasks": TASKS, "values": ["D"]}})
    assert answer.get("failed") is None
    return answer["recipes"][recipe]


def tree(found: Any) -> dict[str, str]:
    assert "failed" not in found, found["failed"]
    root = Path(found["values"]["D"])
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {f"/{path.relative_to(root)}": f"{path.stat().st_mode & 0o777:04o}" for path in files}


@pytest.mark.parametrize("series", SERIES)
def test_the_example(tmp_path: Path, series: str) -> None:
    found = built(tmp_path, recipe=EXAMPLE, series=series)
    assert tree(found) == {
        f"/usr/libexec/{EXAMPLE}/nobody-at-work": "0755",
        "/usr/share/mender/pause.d/10-reboot-at-night.json": "0644",
        "/usr/share/mender/pause.d/20-nobody-at-work.json": "0644",
    }
    night, nobody = hooks.load([str(Path(found["values"]["D"]) / "usr/share/mender/pause.d")])
    assert (night.kind, night.point) == ("window", "ArtifactReboot_Enter")
    assert (nobody.kind, nobody.program) == ("program", f"/usr/libexec/{EXAMPLE}/nobody-at-work")


@pytest.mark.parametrize(("terminal", "name", "code"), [(34816, "sh", 21), (0, "sh", 0), (34816, "getty", 0)])
def test_the_examples_program(tmp_path: Path, terminal: int, name: str, code: int) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(f"7 ({name}) S 1 7 7 {terminal} 7 4194304\n")
    (tmp_path / "8").mkdir()
    (tmp_path / "8/stat").write_text("8 (a) (b) S 1 8 8 34816 8 4194304\n")
    env = {"UPDATE_PROC": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", FILES / "nobody-at-work"], env=env, capture_output=True, check=False)
    assert done.returncode == code


def test_hooks_and_their_programs(tmp_path: Path) -> None:
    """Two hooks may ask one program; one that another package brings is named."""
    files: dict[str, str | dict[str, Any]] = {
        "10-night.json": NIGHT,
        "20-idle.json": ASK,
        "21-idle.json": {**ASK, "point": "ArtifactReboot_Enter"},
        "30-plc.json": {**ASK, "when": {"program": "/opt/plc/bin/is-stopped"}},
        "idle": "#!/bin/sh\n",
    }
    layer = product(tmp_path, files, 'UPDATE_PAUSE_HOOK_PROGRAMS = "/opt/plc/bin/is-stopped"')
    assert tree(built(tmp_path, layer)) == {
        "/usr/libexec/ours/idle": "0755",
        **{
            f"/usr/share/mender/pause.d/{name}": "0644"
            for name in ("10-night.json", "20-idle.json", "21-idle.json", "30-plc.json")
        },
    }


@pytest.mark.parametrize(
    ("files", "lines", "complaint"),
    [
        ({"night.json": NIGHT}, "", "night.json: not NN-name.json, like 10-night.json"),
        (
            {"10-night.json": {**NIGHT, "pint": 1}},
            "",
            'pause.d/10-night.json: the hook has an unknown key "pint"',
        ),
        (
            {"10-night.json": {**NIGHT, "point": "ArtifactReboot"}},
            "",
            'pause.d/10-night.json: point is "ArtifactReboot": must be one of',
        ),
        (
            {"10-night.json": {**NIGHT, "when": {"outside": "Mon..Fri 2", "lasting_s": 7200}}},
            "",
            'pause.d/10-night.json: when.outside is "Mon..Fri 2": ',
        ),
        ({"10-idle.json": {**ASK, "limit_s": 0}}, "", "10-idle.json: limit_s is 0: must be a whole number"),
        ({"10-night.json": "{"}, "", "pause.d/10-night.json: not JSON"),
        ({"10-idle.json": ASK}, "", "10-idle.json: asks /usr/libexec/ours/idle, which is no file of SRC_URI"),
        ({"10-night.json": NIGHT, "20-night.jsn": "{}"}, "", "20-night.jsn: no hook asks it"),
        ({"10-idle.json": ASK, "idle": "echo\n"}, "", "idle: its first line does not name an interpreter"),
        (
            {
                "10-idle.json": ASK,
                "11-idle.json": {**ASK, "when": {"program": "/idle"}},
                "idle": "#!/bin/sh\n",
            },
            "",
            "11-idle.json: asks /idle, another hook /usr/libexec/ours/idle",
        ),
        ({"idle": "#!/bin/sh\n"}, "", "no hook: UPDATE_PAUSE_HOOKS and SRC_URI name none"),
        (
            {"10-night.json": NIGHT},
            'UPDATE_PAUSE_HOOKS = "10-night.json 20-x.json"',
            "no file 20-x.json in SRC_URI",
        ),
    ],
)
def test_a_broken_hook_stops_the_build(
    tmp_path: Path, files: dict[str, Any], lines: str, complaint: str
) -> None:
    found = built(tmp_path, product(tmp_path, files, lines))
    assert complaint in found["failed"]
    assert "our-hooks: " in found["failed"]


def test_the_checker_is_the_agents_own(tmp_path: Path) -> None:
    """Of the source that the build names: with other rules there, the same hook is refused."""
    agent = tmp_path / "source/agent/update_agent"
    agent.parent.mkdir(parents=True)
    shutil.copytree(Path(hooks.__file__).parent, agent, ignore=shutil.ignore_patterns("__pycache__"))
    (agent / "hooks.py").write_text(
        (agent / "hooks.py")
        .read_text()
        .replace("if point not in POINTS", 'if point == "ArtifactReboot_Enter"')
    )
    conf = f'INHERIT += "update"\nUPDATE_SOURCEDIR = "{tmp_path}/source"\n'
    layer = product(tmp_path, {"10-night.json": NIGHT})
    build = Build(tmp_path / "build", conf=conf, more_layers=(layer,))
    found = build.ask({"our-hooks": {"tasks": TASKS}})["recipes"]["our-hooks"]
    assert 'point is "ArtifactReboot_Enter"' in found["failed"]
    assert not list(agent.rglob("__pycache__"))


def test_recipes_named_for_the_image_are_in_it(tmp_path: Path) -> None:
    conf = f'INHERIT += "update"\nUPDATE_PAUSE_HOOK_RECIPES = "{EXAMPLE}"\n'
    answer = Build(tmp_path / "build", conf=conf).ask({"update-image-minimal": {"values": ["IMAGE_INSTALL"]}})
    assert EXAMPLE in answer["recipes"]["update-image-minimal"]["values"]["IMAGE_INSTALL"].split()
