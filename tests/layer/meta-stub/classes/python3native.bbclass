# SPDX-License-Identifier: Apache-2.0
PYTHON_SITEPACKAGES_DIR = "${libdir}/python${PYTHON_SERIES}/site-packages"
PYTHON = "${STUB_PYTHON}"
DEPENDS:append = " python3-native"
