# SPDX-License-Identifier: Apache-2.0
"""`ota completion`: what the Tab key offers in bash, zsh and fish, taken from the commands themselves."""
