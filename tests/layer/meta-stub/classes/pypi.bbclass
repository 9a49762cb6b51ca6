# SPDX-License-Identifier: Apache-2.0
PYPI_PACKAGE ?= "${@d.getVar('PN').replace('python3-', '', 1)}"
S = "${UNPACKDIR}/${PYPI_PACKAGE}-${PV}"
