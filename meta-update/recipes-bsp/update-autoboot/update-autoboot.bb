# SPDX-License-Identifier: MIT
SUMMARY = "First partition of a Raspberry Pi whose firmware chooses between two slots"
DESCRIPTION = "A FAT file system with autoboot.txt, which the firmware reads and the update agent rewrites in its \
place. Nothing else is on it, and nothing mounts it."
SECTION = "bootloaders"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

DEPENDS = "dosfstools-native mtools-native"

inherit update-template deploy nopackages

UPDATE_TEMPLATES = ""

python () {
    if d.getVar("UPDATE_BOOTFLOW") != "tryboot":
        raise bb.parse.SkipRecipe('needs UPDATE_BOOTFLOW = "tryboot"')
    if "systemd" not in (d.getVar("DISTRO_FEATURES") or "").split():
        raise bb.parse.SkipRecipe('needs INIT_MANAGER = "systemd": its reboot hands "0 tryboot" to the kernel')
}

# The firmware reads 512 bytes of it. No time and no random number gets into the file system.
update_make_autoboot_partition() {
    cd ${B}
    printf '%s\n' '[all]' tryboot_a_b=1 boot_partition=${UPDATE_PART_BOOT_A} \
        '[tryboot]' boot_partition=${UPDATE_PART_BOOT_B} > autoboot.txt
    touch -d @0 autoboot.txt
    rm -f update-autoboot.vfat
    mkfs.vfat --invariant -n AUTOBOOT -C update-autoboot.vfat $(expr ${UPDATE_AUTOBOOT_SIZE_MB} \* 1024)
    mcopy -m -i update-autoboot.vfat autoboot.txt ::autoboot.txt
}
do_compile[postfuncs] += "update_make_autoboot_partition"

do_install[noexec] = "1"

do_deploy() {
    install -m 0644 ${B}/update-autoboot.vfat ${DEPLOYDIR}/update-autoboot.vfat
}
addtask deploy after do_compile before do_build
