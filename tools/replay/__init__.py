# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs traces of programs against the shim's predictor, on a machine made of numbers."""
