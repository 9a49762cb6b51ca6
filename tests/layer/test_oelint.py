# SPDX-License-Identifier: Apache-2.0
"""oelint-adv on recipes, appends and classes, for both series; what we do not follow has its reason here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, SERIES

# Rule (as a prefix): why not.
NOT_FOLLOWED = {
    "oelint.bbclass.underscores": "class names as OE-core's own: update-rc.d, kernel-arch",
    "oelint.file.includenotfound": "a machine's file is found by BBPATH, and may be missing",
    "oelint.file.requireinclude": "so it is include, not require",
    "oelint.file.underscores": "images and fixed-version recipes have no version in their name",
    "oelint.task.docstrings": "the comment above says it",
    "oelint.task.noanonpython": "checks at parse time are the point",
    "oelint.var.badimagefeature": "update-image-dev is insecure on purpose, and says so",
    "oelint.var.bbclassextend": "nothing here is wanted natively",
    "oelint.var.filesoverride": "the packages are exactly what the recipe says",
    "oelint.var.licenseremotefile": "COMMON_LICENSE_DIR is how OE-core's own recipes do it",
    "oelint.var.mandatoryvar.HOMEPAGE": "the project has none",
    "oelint.var.mandatoryvar.SRC_URI": "update-agent-conf is made from variables",
    "oelint.var.override": "update-image-dev says of itself what it is",
    "oelint.var.order": "a package's summary and recommendations stand with the package",
    "oelint.var.suggestedvar": "no bug tracker, no CVE product yet",
    "oelint.vars.descriptiontoobrief": "as long as it needs to be",
    "oelint.vars.fileextrapaths": "update-agent takes the agent from beside the layer",
    "oelint.vars.outofcontext": "the same",
    "oelint.vars.homepageping": "tests ask nobody",
    "oelint.vars.inconspaces": "WKS_SEARCH_PATH has colons",
    "oelint.vars.mispell": "IMAGE_TYPEDEP and others of OE-core that the tool does not know",
    "oelint.vars.multilineident": "four spaces everywhere",
    "oelint.vars.noncoreoverride": "u-boot-update.inc is read only with UPDATE_ENABLED",
    "oelint.vars.notneededspace": "one name a line reads better",
    "oelint.vars.overrideappend": "IMAGE_TYPEDEP:wic is OE-core's",
    "oelint.vars.pathhardcode": "localstatedir/lib has no variable",
    "oelint.vars.specific": "the same",
}
FILES = sorted(
    path
    for pattern in ("*.bb", "*.bbappend", "*.inc", "*.bbclass")
    for path in LAYER.rglob(pattern)
    if path.parent.name != "update" and "machine" not in path.parts
)


def complaints(folder: Path, files: list[Path], series: str) -> list[str]:
    known = re.findall(r"^(UPDATE_\w+)", (LAYER / "conf/update/documentation.inc").read_text(), re.MULTILINE)
    settings = {"variables": {"known": known}, "replacements": {"machines": ["update"]}}
    (folder / "oelint.json").write_text(json.dumps(settings))
    program = Path(sys.executable).with_name("oelint-adv")
    command = [program, "--release", series, "--quiet", f"--constantmods=+{folder}/oelint.json", "--", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if ":oelint." in line]
    return [line for line in lines if not line.split(":oelint.")[1].startswith(SHORT)]


SHORT = tuple(rule.removeprefix("oelint.") for rule in NOT_FOLLOWED)


@pytest.mark.parametrize("series", SERIES)
def test_no_complaint(tmp_path: Path, series: str) -> None:
    assert complaints(tmp_path, FILES, series) == []
    assert len(FILES) > 15


def test_a_bad_recipe_is_found(tmp_path: Path) -> None:
    recipe = tmp_path / "bad_1.0.bb"
    recipe.write_text(
        'SUMMARY = "x"\nSRC_URI_append = "file://a"\nS = "${WORKDIR}"\ndo_install() {\n  :\n}\n'
    )
    assert complaints(tmp_path, [recipe], "wrynose") != []
