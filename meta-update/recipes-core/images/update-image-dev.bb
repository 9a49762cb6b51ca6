# SPDX-License-Identifier: MIT
require update-image-minimal.bb

SUMMARY = "update-image-minimal for the desk: anyone can log in"
DESCRIPTION = "With SSH, root without a password, and the agent's D-Bus interface. Not for the field."

IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password ssh-server-dropbear"
IMAGE_INSTALL:append = " update-agent-dbus update-agent-source"
