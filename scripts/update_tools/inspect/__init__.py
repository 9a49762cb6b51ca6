# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: what is in an image, a root file system or an artifact, and what is wrong with it.

`source` opens whatever it is given, each `section` reads one thing and says what it found, `findings` is the
table of everything that can be wrong, `report` shows it. No root, no loop device, nothing is changed.
"""
