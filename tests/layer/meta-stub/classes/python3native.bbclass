# SPDX-License-Identifier: Apache-2.0
PYTHON_DIR = "python${PYTHON_SERIES}"
PYTHON_SITEPACKAGES_DIR = "${libdir}/${PYTHON_DIR}/site-packages"
PYTHON = "${STUB_PYTHON}"
DEPENDS:append = " python3-native"
