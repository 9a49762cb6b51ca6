# SPDX-License-Identifier: MIT
SUMMARY = "U-Boot environment that a new card begins with"
DESCRIPTION = "U-Boot's compiled-in environment with the variables of the update laid over it, as the image \
that wic writes to both places of the environment."
SECTION = "bootloaders"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

DEPENDS = "u-boot-mkenvimage-native"

SRC_URI = "file://update-env.txt.in"

inherit update-template deploy nopackages

UPDATE_TEMPLATES = "update-env.txt.in:update-env.txt"

# What U-Boot's recipe deploys; of another bootloader recipe, with that one's name.
UPDATE_UBOOT_DEFAULT_ENV ??= "${DEPLOY_DIR_IMAGE}/u-boot-initial-env-${MACHINE}"
do_compile[depends] += "virtual/bootloader:do_deploy"

python update_overlay_environment() {
    import glob
    build, default = d.getVar("B"), d.getVar("UPDATE_UBOOT_DEFAULT_ENV")
    if not os.path.isfile(default):
        there = sorted(os.path.basename(path) for path in glob.glob(os.path.dirname(default) + "/*initial-env*"))
        bb.fatal("UPDATE_UBOOT_DEFAULT_ENV: no %s; the boot loader deployed: %s" % (default, " ".join(there) or "none"))
    texts = []
    for path in (default, os.path.join(build, "update-env.txt")):
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    with open(os.path.join(build, "environment.txt"), "w", encoding="utf-8") as file:
        file.write(update_layer.environment.overlay(*texts))
}
# -r: a copy that has a second one beside it.
update_make_environment() {
    cd ${B}
    mkenvimage -r -s ${UPDATE_UBOOT_ENV_SIZE} -o update-uboot-env.bin environment.txt
}
do_compile[postfuncs] += "update_overlay_environment update_make_environment"

do_install[noexec] = "1"

do_deploy() {
    install -m 0644 ${B}/update-uboot-env.bin ${DEPLOYDIR}/update-uboot-env.bin
}
addtask deploy after do_compile before do_build
