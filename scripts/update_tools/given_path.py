# SPDX-License-Identifier: Apache-2.0
"""Paths on a command line, for argparse: an empty one is a variable that a script has not set."""

from __future__ import annotations

import argparse
from pathlib import Path


def given_path(text: str) -> Path:
    """As Path, which takes an empty text for the current folder. Raises ArgumentTypeError."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)
