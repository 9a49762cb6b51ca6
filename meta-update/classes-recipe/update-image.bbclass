# SPDX-License-Identifier: MIT
#
# An image with two root partitions, to be flashed once and updated ever after:
#
#     SUMMARY = "Our product"
#     LICENSE = "MIT"
#     inherit core-image update-image
#     IMAGE_INSTALL:append = " our-application"
#     UPDATE_STATE_SCRIPT_RECIPES = "our-state-scripts"
#     UPDATE_PAUSE_HOOK_RECIPES = "our-pause-hooks"
#
# `bitbake our-product` leaves in deploy/images/MACHINE: .wic and .wic.bmap for the card, .mender for the
# server. The root file system is made exactly as large as a slot. What must survive updates belongs under
# /data, where the image's content of /data is put once. Needs INHERIT += "update"; the sizes are UPDATE_*_MB.

inherit update-artifact

IMAGE_FSTYPES = "ext4 wic wic.bmap mender"
WKS_FILE = "ab-data.wks.in"
WKS_FILE:update-tryboot = "update-tryboot.wks.in"
# Some BSP layers set this one, which is read first.
WKS_FILES = "${WKS_FILE}"
IMAGE_TYPEDEP:wic:append = " ext4"
do_image_wic[depends] += "${@'update-autoboot:do_deploy' if d.getVar('UPDATE_BOOTFLOW') == 'tryboot' else 'update-boot-script:do_deploy update-uboot-env:do_deploy virtual/bootloader:do_deploy'}"

# KiB. Equal limits: an image that does not fit its slot is an error of the build, not of the first update.
IMAGE_ROOTFS_SIZE = "${@int(d.getVar('UPDATE_ROOTFS_SIZE_MB') or 0) * 1024}"
IMAGE_ROOTFS_MAXSIZE = "${IMAGE_ROOTFS_SIZE}"
IMAGE_ROOTFS_EXTRA_SPACE = "0"
IMAGE_OVERHEAD_FACTOR = "1.0"

# The slot has its own kernel and device tree, so that they are updated with it.
IMAGE_INSTALL:append:update-u-boot = " \
    kernel-image \
    ${@'kernel-devicetree' if d.getVar('KERNEL_DEVICETREE') and d.getVar('UPDATE_DEVICETREE') else ''} \
"
IMAGE_INSTALL:append = " \
    update-agent \
    update-agent-modules \
    update-data \
    update-identity \
    ${UPDATE_STATE_SCRIPT_RECIPES} \
    ${UPDATE_PAUSE_HOOK_RECIPES} \
"

# Better here than on the board: boot.scr finds what it starts.
python update_image_check_boot() {
    wanted = {name: d.getVar(name) for name in ("UPDATE_KERNEL", "UPDATE_DEVICETREE") if d.getVar(name)}
    if lost := update_layer.bootfiles.absent(wanted, os.path.join(d.getVar("IMAGE_ROOTFS"), "boot")):
        bb.fatal("\n".join(lost))
}
ROOTFS_POSTPROCESS_COMMAND:append:update-u-boot = " update_image_check_boot"

# With tryboot /boot is all that the firmware reads of a slot: what other images have in their boot partition.
do_rootfs[depends] += "${@'rpi-bootfiles:do_deploy virtual/kernel:do_deploy' if d.getVar('UPDATE_BOOTFLOW') == 'tryboot' else ''}"
python update_image_boot_files() {
    try:
        files = update_layer.bootfiles.resolve(d.getVar("IMAGE_BOOT_FILES"), d.getVar("DEPLOY_DIR_IMAGE"))
    except ValueError as error:
        bb.fatal(str(error))
    boot = os.path.join(d.getVar("IMAGE_ROOTFS"), "boot")
    for source, target in files:
        bb.utils.mkdirhier(os.path.dirname(os.path.join(boot, target)))
        bb.utils.copyfile(source, os.path.join(boot, target))
}
ROOTFS_POSTPROCESS_COMMAND:append:update-tryboot = " update_image_boot_files"

update_image_fstab() {
    install -d ${IMAGE_ROOTFS}/data
    if ! grep -q '[[:space:]]/data[[:space:]]' ${IMAGE_ROOTFS}${sysconfdir}/fstab; then
        echo "${UPDATE_DATA_MOUNT}" >> ${IMAGE_ROOTFS}${sysconfdir}/fstab
    fi
}
ROOTFS_POSTPROCESS_COMMAND += "update_image_fstab"

# What makes a device itself is on its data partition, one for both slots: recipe update-identity.
update_image_identity() {
    # A root that is never written needs the file to mount over.
    if [ ! -e ${IMAGE_ROOTFS}${sysconfdir}/machine-id ]; then
        : > ${IMAGE_ROOTFS}${sysconfdir}/machine-id
    fi
    for config in ${IMAGE_ROOTFS}${sysconfdir}/ssh/sshd_config ${IMAGE_ROOTFS}${sysconfdir}/ssh/sshd_config_readonly; do
        if [ -e $config ]; then sed -i 's,^#*[[:space:]]*HostKey[[:space:]].*/,HostKey /data/identity/ssh/,' $config; fi
    done
    default=${IMAGE_ROOTFS}${sysconfdir}/default/dropbear
    if [ -e $default ]; then
        sed -i '/^DROPBEAR_RSAKEY_DIR=/d' $default
        echo 'DROPBEAR_RSAKEY_DIR=/data/identity/dropbear' >> $default
    fi
}
ROOTFS_POSTPROCESS_COMMAND += "update_image_identity"

# What a new card says it runs, until its first update: read and deleted by the agent at its first start.
update_image_bootstrap() {
    install -d -m 0700 ${IMAGE_ROOTFS}/data/mender
    ${UPDATE_ARTIFACT_TOOL} write bootstrap-artifact --artifact-name "${UPDATE_ARTIFACT_NAME}" \
        --device-type "${UPDATE_DEVICE_TYPE}" --output-path ${IMAGE_ROOTFS}/data/mender/bootstrap.mender
}
ROOTFS_POSTPROCESS_COMMAND += "update_image_bootstrap"
