# SPDX-License-Identifier: MIT
SUMMARY = "Smallest image that boots, has a network, and updates itself"
DESCRIPTION = "A base for a product's image, and the first thing to flash on a new board."
LICENSE = "MIT"

inherit core-image update-image
