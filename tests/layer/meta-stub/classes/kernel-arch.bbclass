# SPDX-License-Identifier: Apache-2.0
UBOOT_ARCH = "${@'arm64' if '64' in d.getVar('MACHINE') or d.getVar('MACHINE') == 'raspberrypi5' else 'arm'}"
