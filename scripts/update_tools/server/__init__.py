# SPDX-License-Identifier: Apache-2.0
"""Control server: device API, management API and page over one SQLite file."""
