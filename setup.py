# SPDX-License-Identifier: GPL-2.0-or-later
"""The one thing pyproject.toml cannot say: where cffi finds the io_uring extension's definition."""

from setuptools import setup

setup(cffi_modules=["tierd/nvme/_uring_build.py:ffibuilder"])
