# SPDX-License-Identifier: MIT
#
# Turns this layer on. In local.conf, a distro, or a kas file:
#
#     INHERIT += "update"
#     UPDATE_ARTIFACT_NAME = "product-1.4.0"
#     UPDATE_SERVER_URL = "https://updates.example.com"
#
# Then `bitbake update-image-minimal`, or an image of yours that inherits update-image. A machine's facts come
# from conf/update/machine/${MACHINE}.inc of any layer; one without that file gets conf/update/layout.inc's.
# The overrides `update` and `update-${UPDATE_BOOTFLOW}` are set. README.md lists the variables.

require conf/update/layout.inc
include conf/update/machine/${MACHINE}.inc
include conf/update/bootflow/${UPDATE_BOOTFLOW}.inc
require conf/update/documentation.inc

UPDATE_ENABLED = "1"
OVERRIDES =. "update-${UPDATE_BOOTFLOW}:update:"

UPDATE_ARTIFACT_NAME ??= "${DISTRO}-${DISTRO_VERSION}"
UPDATE_SERVER_URL ??= ""
UPDATE_TENANT_TOKEN ??= ""
UPDATE_SERVER_CERTIFICATE ??= ""
UPDATE_POLL_INTERVAL_S ??= "1800"
UPDATE_INVENTORY_INTERVAL_S ??= "28800"
UPDATE_VERIFY_KEYS ??= ""
UPDATE_SIGNING_KEY ??= ""
UPDATE_SIGNED ??= "0"
UPDATE_STATE_SCRIPT_RECIPES ??= ""
UPDATE_PAUSE_HOOK_RECIPES ??= ""
UPDATE_UBOOT_FRAGMENTS ??= "update-env.cfg"
UPDATE_UBOOT_ENV_IMAGE ??= "${DEPLOY_DIR_IMAGE}/update-uboot-env.bin"

# The agent comes from the repository as it is; what Python leaves there is no change of it.
BB_SIGNATURE_LOCAL_DIRS_EXCLUDE ??= "CVS .bzr .git .hg .osc .p4 .repo .svn"
BB_SIGNATURE_LOCAL_DIRS_EXCLUDE:append = " __pycache__"

# Where 6.0 looks by itself; 5.0 looks elsewhere.
WKS_SEARCH_PATH:append = ":${UPDATE_LAYERDIR}/files/wic"

# All that is wrong, in one message, before anything is parsed with it.
addhandler update_check_layout
update_check_layout[eventmask] = "bb.event.ConfigParsed"
python update_check_layout() {
    problems = update_layer.layout.problems(update_layer.variables(d))
    if problems:
        bb.fatal("\n".join(["meta-update: MACHINE %s is not set up right:" % d.getVar("MACHINE")] + problems))
}
