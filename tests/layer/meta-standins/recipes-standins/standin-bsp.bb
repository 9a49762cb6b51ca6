# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Files that kernel, boot loader and firmware would deploy, empty; and the kernel's packages"
LICENSE = "Apache-2.0"

inherit deploy

PROVIDES = "virtual/kernel virtual/bootloader ${STANDIN_BSP_PROVIDES}"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"
# The root file system's kernel and device trees.
PACKAGES = "${STANDIN_KERNEL_PACKAGES}"
KERNEL_IMAGEDEST = "boot"

STANDIN_TREE = '/dts-v1/; / { compatible = "${STANDIN_COMPATIBLE}"; };'

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_package_qa[noexec] = "1"

# As OE-core's kernel and kernel-devicetree classes have them, which take no notice of this layer's variables.
KERNEL_DTBDEST ?= "${KERNEL_IMAGEDEST}"
KERNEL_DTBVENDORED ?= "0"

# STANDIN_DIR/kernel is a kernel for the virtual board; elsewhere a word stands for it.
do_install() {
    install -d ${D}/boot
    if [ -e "${STANDIN_DIR}/kernel" ]; then
        install -m 0644 "${STANDIN_DIR}/kernel" "${D}/boot/${KERNEL_IMAGETYPE}"
    else
        echo "in place of a kernel" > "${D}/boot/${KERNEL_IMAGETYPE}"
    fi
    for dtb in ${KERNEL_DEVICETREE}; do
        if [ "${KERNEL_DTBVENDORED}" != 1 ]; then dtb=$(basename $dtb); fi
        install -d $(dirname ${D}/${KERNEL_DTBDEST}/$dtb)
        echo '${STANDIN_TREE}' | dtc -O dtb -o ${D}/${KERNEL_DTBDEST}/$dtb
    done
}

# Each file that wic takes from the deploy directory into the boot partition, but for those that our recipes deploy.
python do_deploy() {
    import shutil
    import subprocess
    folder = d.getVar("DEPLOYDIR")
    ours = d.getVar("STANDIN_OURS").split()
    for entry in (d.getVar("IMAGE_BOOT_FILES") or "").split():
        name = entry.split(";")[0].replace("*", "standin")
        path = os.path.join(folder, name)
        if name not in ours:
            bb.utils.mkdirhier(os.path.dirname(path))
            with open(path, "w") as file:
                file.write("in place of %s\n" % name)
            if name.endswith((".dtb", ".dtbo")):
                tree = d.getVar("STANDIN_TREE")
                subprocess.run(["dtc", "-O", "dtb", "-o", path], input=tree, text=True, check=True)
    environment = os.path.join(d.getVar("STANDIN_DIR"), "initial-env")
    shutil.copy(environment, os.path.join(folder, os.path.basename(d.getVar("UPDATE_UBOOT_DEFAULT_ENV"))))
}
addtask deploy after do_install before do_build

UPDATE_UBOOT_DEFAULT_ENV ??= "u-boot-initial-env-${MACHINE}"
do_deploy[vardeps] += "IMAGE_BOOT_FILES UPDATE_UBOOT_DEFAULT_ENV STANDIN_OURS"
do_deploy[file-checksums] += "${STANDIN_DIR}/initial-env:True"
do_install[file-checksums] += "${STANDIN_DIR}/kernel:True"

ALLOW_EMPTY:kernel-devicetree = "1"
ALLOW_EMPTY:kernel-modules = "1"
ALLOW_EMPTY:kernel-base = "1"
ALLOW_EMPTY:kernel = "1"
FILES:kernel-image = "/boot/${KERNEL_IMAGETYPE}"
FILES:kernel-devicetree = "/${KERNEL_DTBDEST}"
