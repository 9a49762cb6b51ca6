# SPDX-License-Identifier: MIT
#
# State scripts of a product:
#
#     SUMMARY = "What our product does around an update"
#     LICENSE = "MIT"
#     LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
#     SRC_URI = "file://Sync_Enter_10_quiet-hours file://ArtifactInstall_Leave_20_migrate"
#     inherit update-state-scripts
#
# and UPDATE_STATE_SCRIPT_RECIPES += "the-recipe" for the image. Idle, Sync and Download scripts belong to the
# running system and land in its /etc/mender/scripts; Artifact scripts travel in the artifact. A name that no
# hook answers to is an error when the recipe is parsed. The override: UPDATE_STATE_SCRIPTS names the files.

inherit allarch deploy

S = "${UNPACKDIR}"
INHIBIT_DEFAULT_DEPS = "1"

UPDATE_STATE_SCRIPTS ?= "${@' '.join(update_layer.files(d))}"

python () {
    names = d.getVar("UPDATE_STATE_SCRIPTS").split()
    problems = update_layer.statescripts.problems(names, d.getVar("UPDATE_SOURCEDIR"))
    if not names:
        problems = ["no script: UPDATE_STATE_SCRIPTS and SRC_URI name none"]
    if problems:
        bb.fatal("\n".join(["%s: state scripts that would not run:" % d.getVar("PN")] + problems))
    rootfs, artifact = update_layer.statescripts.split(names, d.getVar("UPDATE_SOURCEDIR"))
    d.setVar("UPDATE_STATE_SCRIPTS_ROOTFS", " ".join(rootfs))
    d.setVar("UPDATE_STATE_SCRIPTS_ARTIFACT", " ".join(artifact))
}

do_configure[noexec] = "1"

do_compile() {
    for script in ${UPDATE_STATE_SCRIPTS}; do
        if ! head -n 1 "${S}/$script" | grep -q '^#!/'; then
            bbfatal "$script: its first line does not name an interpreter (#!/bin/sh)"
        fi
    done
}

do_install() {
    for script in ${UPDATE_STATE_SCRIPTS_ROOTFS}; do
        install -D -m 0755 "${S}/$script" "${D}${sysconfdir}/mender/scripts/$script"
    done
}

do_deploy() {
    install -d "${DEPLOYDIR}/update-state-scripts/${PN}"
    for script in ${UPDATE_STATE_SCRIPTS_ARTIFACT}; do
        install -m 0755 "${S}/$script" "${DEPLOYDIR}/update-state-scripts/${PN}/$script"
    done
}
addtask deploy after do_compile before do_build

FILES:${PN} = "${sysconfdir}/mender/scripts"
ALLOW_EMPTY:${PN} = "1"
