# SPDX-License-Identifier: GPL-2.0-or-later
"""The greenboost command. main.py knows the commands; each has a file of its own."""
