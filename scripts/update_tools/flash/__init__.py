# SPDX-License-Identifier: Apache-2.0
"""`ota flash`: writes the image of a card to removable media, and nothing else on this machine."""
