# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of greenboost bench spill: as lines of a table and as JSON."""

from __future__ import annotations

from .bench_pairs import Latency, Pair, Throughput

__all__ = [
    "LATENCY_HEAD",
    "THROUGHPUT_HEAD",
    "latency_json",
    "latency_line",
    "throughput_json",
    "throughput_line",
]

THROUGHPUT_HEAD = (
    "                  GB/s             ours/fio              cores per GB/s\n"
    "chunk   direction  ours    fio    median  min   max     daemon client  fio"
)
LATENCY_HEAD = (
    "                    ours ms         fio ms       ours over\n"
    "chunk    fetches  median   p99   median   p99    fio us"
)


def throughput_line(found: Throughput) -> str:
    """A line under THROUGHPUT_HEAD."""
    ratios = [pair.ratio for pair in found.pairs]
    rates = f"{found.median(_rate) / 1e9:5.2f}  {found.median(_fio_rate) / 1e9:5.2f}"
    cpu = " ".join(f"{found.median(of) * 1e9:6.3f}" for of in (_daemon_cpu, _client_cpu, _fio_cpu))
    return (
        f"{found.chunk >> 20:2} MiB  {found.direction:9} {rates}   "
        f"{found.median(_ratio):6.3f} {min(ratios):5.2f} {max(ratios):5.2f}    {cpu}"
    )


def latency_line(found: Latency) -> str:
    """A line under LATENCY_HEAD."""
    return (
        f"{found.chunk >> 20:2} MiB  {found.fetches:9} {found.median * 1e3:7.2f} {found.p99 * 1e3:7.2f} "
        f"{found.fio_median * 1e3:7.2f} {found.fio_p99 * 1e3:7.2f} {found.over * 1e6:8.0f}"
    )


def throughput_json(found: Throughput) -> dict[str, object]:
    """One direction at one chunk size; a CPU second a GB is a core busy per GB/s."""
    ratios = [pair.ratio for pair in found.pairs]
    return {
        "direction": found.direction,
        "chunk_bytes": found.chunk,
        "depth": found.depth,
        "bytes_per_second": found.median(_rate),
        "fio_bytes_per_second": found.median(_fio_rate),
        "fio_summed_bytes_per_second": found.median(_fio_summed),
        "ratio": found.median(_ratio),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "daemon_cpu_seconds_per_gb": found.median(_daemon_cpu) * 1e9,
        "client_cpu_seconds_per_gb": found.median(_client_cpu) * 1e9,
        "fio_cpu_seconds_per_gb": found.median(_fio_cpu) * 1e9,
        "pairs": [
            {"bytes_per_second": pair.rate, "fio_bytes_per_second": pair.fio_rate} for pair in found.pairs
        ],
    }


def latency_json(found: Latency) -> dict[str, object]:
    """Single fetches at one chunk size."""
    return {
        "chunk_bytes": found.chunk,
        "fetches": found.fetches,
        "median_seconds": found.median,
        "p99_seconds": found.p99,
        "fio_median_seconds": found.fio_median,
        "fio_p99_seconds": found.fio_p99,
        "over_fio_seconds": found.over,
    }


def _rate(pair: Pair) -> float:
    return pair.rate


def _fio_rate(pair: Pair) -> float:
    return pair.fio_rate


def _fio_summed(pair: Pair) -> float:
    return pair.fio_summed


def _ratio(pair: Pair) -> float:
    return pair.ratio


def _daemon_cpu(pair: Pair) -> float:
    return pair.daemon_cpu


def _client_cpu(pair: Pair) -> float:
    return pair.client_cpu


def _fio_cpu(pair: Pair) -> float:
    return pair.fio_cpu
