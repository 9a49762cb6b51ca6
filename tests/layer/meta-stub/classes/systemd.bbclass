# SPDX-License-Identifier: Apache-2.0
SYSTEMD_PACKAGES ?= "${PN}"
