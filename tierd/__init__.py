# SPDX-License-Identifier: GPL-2.0-or-later
"""GreenBoost's daemon: RAM and NVMe as tiers below an NVIDIA GPU's memory."""

__version__ = "0.1.0"
