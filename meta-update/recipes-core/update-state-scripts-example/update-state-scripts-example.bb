# SPDX-License-Identifier: MIT
SUMMARY = "State scripts to copy from"
DESCRIPTION = "No update outside the night hours, and a self test that must pass before an update is \
committed: if it does not, the device goes back to what it ran before."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "file://Download_Enter_10_quiet-hours file://ArtifactCommit_Enter_50_self-test"

inherit update-state-scripts
