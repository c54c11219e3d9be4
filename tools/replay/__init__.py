# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs traces of programs through the shim's pager, on a machine made of numbers."""
