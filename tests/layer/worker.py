# SPDX-License-Identifier: Apache-2.0
"""Runs in a process of its own, because BitBake keeps state: parse one build's recipes and run their tasks.

Reads a request from stdin as JSON, writes the answer to the file it names:

    {"build": DIR, "answer": FILE, "recipes": {RECIPE or "*": {"tasks": [TASK], "values": [VARIABLE]}}}
    {"values": {...}, "failed": MESSAGE, "messages": [...],
     "recipes": {RECIPE: {"values": {...}, "skipped": REASON, "failed": MESSAGE}}}
"""

from __future__ import annotations

import fnmatch
import glob
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

for _name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules.setdefault(_name, types.ModuleType(_name))  # imported by BitBake, not needed to parse

import bb  # noqa: E402
import bb.build  # noqa: E402
import bb.cookerdata  # noqa: E402
import bb.event  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.parse  # noqa: E402
import bb.utils  # noqa: E402


class Messages(logging.Handler):
    """Keeps what BitBake warns of and complains about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def configuration(build: Path) -> Any:
    """BitBake's data after the configuration files of a build directory."""
    os.chdir(build)
    os.environ["BBPATH"] = str(build)
    settings = bb.cookerdata.CookerConfiguration()
    settings.environment = settings.env = dict(os.environ)
    settings.prefile = settings.postfile = []
    settings.tracking = settings.dry_run = False
    builder = bb.cookerdata.CookerDataBuilder(settings, False)
    builder.parseBaseConfiguration()
    return builder


def recipe(builder: Any, path: str, appends: list[str], request: dict[str, Any], messages: Messages) -> Any:
    """Parse one recipe, run the wanted tasks in order, and give the wanted values."""
    answer: dict[str, Any] = {}
    try:
        d = builder.parseRecipeVariants(path, appends, mc="", layername="")[""]
        if reason := d.getVar("__SKIPPED"):
            return {"skipped": reason}
        for name in ("T", "WORKDIR", "DEPLOY_DIR_IMAGE"):
            bb.utils.mkdirhier(d.getVar(name))
        for task in request.get("tasks", []):
            for hook in ("prefuncs", "", "postfuncs"):
                names = [task] if not hook else (d.getVarFlag(task, hook) or "").split()
                if not hook and d.getVarFlag(task, "noexec"):
                    continue
                for name in names:
                    bb.build.exec_func(name, d)
        answer["values"] = {name: d.getVar(name) for name in request.get("values", [])}
        answer["flags"] = {name: d.getVarFlag(*name.split("[")) for name in request.get("flags", [])}
    except Exception as error:
        log = Path(d.getVar("T")) if "d" in locals() else None
        output = "".join(f.read_text(errors="replace") for f in sorted(log.glob("log.*"))) if log else ""
        answer["failed"] = f"{type(error).__name__}: {error}\n" + "\n".join(messages.lines) + "\n" + output
    except SystemExit:
        answer["failed"] = "\n".join(messages.lines)
    return answer


def main() -> None:
    request = json.load(sys.stdin)
    messages = Messages()
    logging.getLogger("BitBake").addHandler(messages)
    answer: dict[str, Any] = {"recipes": {}}
    try:
        builder = configuration(Path(request["build"]))
        found = [file for pattern in builder.data.getVar("BBFILES").split() for file in glob.glob(pattern)]
        appends = [file for file in found if file.endswith(".bbappend")]
        recipes = {
            os.path.basename(file).partition("_")[0].removesuffix(".bb"): file
            for file in found
            if file.endswith(".bb")
        }
        answer["all"] = sorted(recipes)
        names = sorted(builder.data.keys())
        answer["values"] = {
            n: builder.data.getVar(n) for n in names if n.startswith("UPDATE_") and ":" not in n
        }
        answer["values"].update({name: builder.data.getVar(name) for name in request.get("values", [])})
        answer["expanded"] = builder.data.expand(request.get("expand", ""))
        asked = request["recipes"]
        if "*" in asked:
            asked = dict.fromkeys(recipes, asked["*"])
        for name, wanted in asked.items():
            path = recipes[name]
            stem = os.path.basename(path).removesuffix(".bb")
            mine = [a for a in appends if fnmatch.fnmatch(stem, os.path.basename(a)[:-9].replace("%", "*"))]
            answer["recipes"][name] = recipe(builder, path, mine, wanted, messages)
    except (Exception, SystemExit) as error:
        answer["failed"] = f"{type(error).__name__}: {error}\n" + "\n".join(messages.lines)
    answer["messages"] = messages.lines
    Path(request["answer"]).write_text(json.dumps(answer, default=str))


if __name__ == "__main__":
    main()
