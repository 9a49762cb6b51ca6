# SPDX-License-Identifier: MIT
require update-image-minimal.bb

SUMMARY = "update-image-minimal for the desk: SSH, root without password, D-Bus interface of the agent"
DESCRIPTION = "Not for the field: anyone can log in."

IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password ssh-server-dropbear"
IMAGE_INSTALL:append = " update-agent-dbus update-agent-source"
