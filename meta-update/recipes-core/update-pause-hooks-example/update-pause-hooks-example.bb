# SPDX-License-Identifier: MIT
SUMMARY = "Pause hooks to copy from"
DESCRIPTION = "No reboot outside of a window at night, and no installation while somebody is logged in."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "file://10-reboot-at-night.json file://20-nobody-at-work.json file://nobody-at-work"

inherit update-pause-hooks
