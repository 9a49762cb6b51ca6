# SPDX-License-Identifier: MIT
SUMMARY = "U-Boot script that starts one of two slots"
DESCRIPTION = "boot.scr: chooses the slot, counts the boots of a new one, goes back to the old one when it is \
not committed or does not start, and says so on the console when nothing starts."
SECTION = "bootloaders"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

DEPENDS = "u-boot-mkimage-native"
PROVIDES += "u-boot-default-script"

SRC_URI = "file://boot.cmd.in"

inherit update-template kernel-arch deploy nopackages

UPDATE_TEMPLATES = "boot.cmd.in:boot.cmd"

# The time in the header comes from SOURCE_DATE_EPOCH: same input, same script.
update_make_boot_script() {
    cd ${B}
    mkimage -A ${UBOOT_ARCH} -T script -C none -n "update" -d boot.cmd boot.scr
}
do_compile[postfuncs] += "update_make_boot_script"

do_install[noexec] = "1"

do_deploy() {
    install -m 0644 ${B}/boot.scr ${DEPLOYDIR}/boot.scr
}
addtask deploy after do_compile before do_build
