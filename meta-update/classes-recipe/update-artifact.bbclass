# SPDX-License-Identifier: MIT
#
# Image type "mender": the root file system as an update artifact, for images that lay out their card
# themselves (update-image inherits this):
#
#     inherit core-image update-artifact
#     IMAGE_FSTYPES += "mender"
#     UPDATE_ARTIFACT_NAME = "product-1.4.0"
#     UPDATE_SIGNING_KEY = "/path/on/the/build/host/private.pem"
#
# The artifact carries the state scripts of UPDATE_STATE_SCRIPT_RECIPES that run from it, and no others: a
# recipe taken off that list is gone from the next artifact. Needs INHERIT += "update".

# This repository's writer, built natively. Or another program with the same options, named in HOSTTOOLS:
# "mender-artifact".
UPDATE_ARTIFACT_TOOL ??= "update-artifact-tool"

IMAGE_TYPES += "mender"
IMAGE_TYPEDEP:mender = "ext4"

python () {
    if d.getVar("UPDATE_ENABLED") != "1":
        raise bb.parse.SkipRecipe('needs INHERIT += "update"')
    for recipe in d.getVar("UPDATE_STATE_SCRIPT_RECIPES").split():
        d.appendVarFlag("do_image_mender", "depends", " %s:do_deploy" % recipe)
    if d.getVar("UPDATE_ARTIFACT_TOOL") == "update-artifact-tool":
        for task in ("do_rootfs", "do_image_mender"):
            d.appendVarFlag(task, "depends", " update-artifact-tool-native:do_populate_sysroot")
    if d.getVar("UPDATE_SIGNING_KEY"):
        d.appendVarFlag("do_image_mender", "file-checksums", " ${UPDATE_SIGNING_KEY}:True")
}

IMAGE_CMD:mender() {
    set -- write rootfs-image --artifact-name "${UPDATE_ARTIFACT_NAME}" --device-type "${UPDATE_DEVICE_TYPE}" \
        --file "${IMGDEPLOYDIR}/${IMAGE_NAME}.ext4" --output-path "${IMGDEPLOYDIR}/${IMAGE_NAME}.mender"
    for recipe in ${UPDATE_STATE_SCRIPT_RECIPES}; do
        for script in "${DEPLOY_DIR_IMAGE}/update-state-scripts/$recipe"/*; do
            if [ -e "$script" ]; then set -- "$@" --script "$script"; fi
        done
    done
    if [ -n "${UPDATE_SIGNING_KEY}" ]; then set -- "$@" --key "${UPDATE_SIGNING_KEY}"; fi
    ${UPDATE_ARTIFACT_TOOL} "$@"
}
