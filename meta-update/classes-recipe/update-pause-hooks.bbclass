# SPDX-License-Identifier: MIT
#
# Pause hooks of a product, small files that hold every update at a point: outside of a window, or as long as a
# program says so (agent/README.md has their keys):
#
#     SUMMARY = "When our product lets itself be updated"
#     LICENSE = "MIT"
#     LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
#     SRC_URI = "file://10-night.json file://20-idle.json file://machine-is-idle"
#     inherit update-pause-hooks
#
# and UPDATE_PAUSE_HOOK_RECIPES += "the-recipe" for the image, or the recipe in IMAGE_INSTALL. NN-name.json lands
# in /usr/share/mender/pause.d; a file with the name of a program that a hook asks lands where the hook looks
# for it ("program": "/usr/libexec/our-product/machine-is-idle"). A program that another package brings is named
# by its path in UPDATE_PAUSE_HOOK_PROGRAMS. The agent's own checker reads the hooks in do_compile: a hook that
# would not hold as it was meant to stops the build, with file, key and reason. A device switches a hook off, or
# has another of the same name, in /etc/mender/pause.d.

inherit allarch python3native

S = "${UNPACKDIR}"
B = "${WORKDIR}/build"
INHIBIT_DEFAULT_DEPS = "1"

UPDATE_PAUSE_HOOKS ?= "${@' '.join(update_layer.pausehooks.split(update_layer.files(d))[0])}"
UPDATE_PAUSE_HOOK_PROGRAMS ?= ""

python () {
    names = d.getVar("UPDATE_PAUSE_HOOKS").split()
    problems = update_layer.pausehooks.problems(names)
    if not names:
        problems = ["no hook: UPDATE_PAUSE_HOOKS and SRC_URI name none"]
    if problems:
        bb.fatal("\n".join(["%s: pause hooks that would not be read:" % d.getVar("PN")] + problems))
}

do_configure[noexec] = "1"

# Other rules of the agent, other answers of its checker.
do_compile[file-checksums] += "${UPDATE_SOURCEDIR}/agent/update_agent:True"
do_compile[cleandirs] = "${B}"
python do_compile() {
    import subprocess
    source, build = d.getVar("S"), d.getVar("B")
    folder = os.path.join(build, "pause.d")
    bb.utils.mkdirhier(folder)
    hooks = d.getVar("UPDATE_PAUSE_HOOKS").split()
    for name in hooks:
        if not os.path.isfile(os.path.join(source, name)):
            bb.fatal("%s: no file %s in SRC_URI" % (d.getVar("PN"), name))
        bb.utils.copyfile(os.path.join(source, name), os.path.join(folder, name))
    environment = dict(os.environ, PYTHONPATH=os.path.join(d.getVar("UPDATE_SOURCEDIR"), "agent"))
    checker = [d.getVar("PYTHON"), "-B", "-m", "update_agent.hooks", "pause.d"]
    done = subprocess.run(checker, cwd=build, env=environment, capture_output=True, text=True)
    if done.returncode:
        bb.fatal("%s: pause hooks that would not hold as they should:\n%s%s" % (d.getVar("PN"), done.stdout, done.stderr))

    asked = {}
    for name in hooks:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            if path := update_layer.pausehooks.program(file.read()):
                asked[name] = path
    files = [name for name in update_layer.files(d) if name not in hooks]
    targets, problems = update_layer.pausehooks.places(asked, files, d.getVar("UPDATE_PAUSE_HOOK_PROGRAMS").split())
    for name in targets:
        with open(os.path.join(source, name), "rb") as file:
            if not file.read(4).startswith((b"#!/", b"\x7fELF")):
                problems.append("%s: its first line does not name an interpreter (#!/bin/sh)" % name)
    if problems:
        bb.fatal("\n".join(["%s: programs of its pause hooks:" % d.getVar("PN")] + problems))
    with open(os.path.join(build, "programs"), "w", encoding="utf-8") as file:
        file.writelines("%s %s\n" % pair for pair in sorted(targets.items()))
}

do_install() {
    for hook in ${UPDATE_PAUSE_HOOKS}; do
        install -D -m 0644 "${B}/pause.d/$hook" "${D}${datadir}/mender/pause.d/$hook"
    done
    while read -r name path; do
        install -D -m 0755 "${S}/$name" "${D}$path"
    done < ${B}/programs
}

# Nothing else is in ${D}; where programs land is known only when the hooks have been read.
FILES:${PN} = "/"
