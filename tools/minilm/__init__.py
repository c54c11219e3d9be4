# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's program: the all-MiniLM-L6-v2 sentence model over the CUDA driver API.

It knows nothing of tiers. The same program runs bare on a device that is large enough and under
``greenboost run`` on one that is not, and must give the same bytes.
"""
