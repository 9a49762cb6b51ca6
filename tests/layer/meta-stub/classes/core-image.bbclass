# SPDX-License-Identifier: Apache-2.0
# Stands for OE-core's image classes: do_rootfs makes a root file system of what the real one begins with, and
# an image type's command is run as a task.
IMAGE_ROOTFS = "${WORKDIR}/rootfs"
IMGDEPLOYDIR = "${WORKDIR}/deploy-image"
IMAGE_LINK_NAME = "${PN}-${MACHINE}.rootfs"
IMAGE_NAME = "${IMAGE_LINK_NAME}-20260101000000"
IMAGE_INSTALL ?= ""
# What the kernel's packages would install in /boot.
STUB_BOOT_FILES ?= ""

do_rootfs() {
    install -d ${IMAGE_ROOTFS}${sysconfdir} ${IMGDEPLOYDIR}
    for file in ${STUB_BOOT_FILES}; do
        install -D /dev/null ${IMAGE_ROOTFS}/boot/$file
    done
    printf '/dev/root\t/\tauto\tdefaults\t1\t1\n' > ${IMAGE_ROOTFS}${sysconfdir}/fstab
}
do_rootfs[cleandirs] = "${IMAGE_ROOTFS}"
do_rootfs[postfuncs] += "${ROOTFS_POSTPROCESS_COMMAND}"

do_image_ext4() {
    rm -f ${IMGDEPLOYDIR}/${IMAGE_NAME}.ext4
    mke2fs -q -t ext4 -d ${IMAGE_ROOTFS} ${IMGDEPLOYDIR}/${IMAGE_NAME}.ext4 ${IMAGE_ROOTFS_SIZE}
    ln -sf ${IMAGE_NAME}.ext4 ${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.ext4
}

python () {
    d.setVar("do_image_mender", d.getVar("IMAGE_CMD:mender", False))
    d.setVarFlag("do_image_mender", "func", "1")
}
