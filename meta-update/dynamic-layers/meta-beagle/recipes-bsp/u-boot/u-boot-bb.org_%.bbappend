# SPDX-License-Identifier: MIT
require ${@bb.utils.contains("UPDATE_ENABLED", "1", "recipes-bsp/u-boot/u-boot-update.inc", "", d)}
