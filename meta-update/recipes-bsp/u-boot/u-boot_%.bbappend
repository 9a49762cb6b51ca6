# SPDX-License-Identifier: MIT
require ${@bb.utils.contains("UPDATE_ENABLED", "1", "u-boot-update.inc", "", d)}
