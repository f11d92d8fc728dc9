"""Runs the measurements of a preset, each beside the limits of the machine at the same indices."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import groupby

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from benchmarks.lookup import machine, sharded
from benchmarks.lookup.cases import ELEMENT_BYTES, FORWARD, TRAIN, Case, Measurement, Preset, evenly, index_sets
from benchmarks.lookup.kernels import build, random_tables
from benchmarks.lookup.machine import Bandwidth
from benchmarks.lookup.progress import Progress, Result
from benchmarks.lookup.timing import Timing, measure

Found = Generator[tuple[Measurement, Timing | Result]]  # a timing, or why there is none: ``reason`` or ``error``


def run(
    preset: Preset,
    device: torch.device,
    progress: Progress,
    log: Callable[[str], None],
    minutes: float = math.inf,
) -> None:
    """Measure what is missing, in an order that covers all sweeps alike.

    Args:
        preset: Base case, time for each figure.
        device: Where the tables live.
        progress: What is missing; takes each figure as soon as it is there.
        log: Takes one line about each figure.
        minutes: No figure begins later.
    """
    threads = preset.base.threads
    copy = Bandwidth(**progress.result["copy"])
    limits: dict[Case, Bandwidth] = {}
    end = time.perf_counter() + 60 * minutes
    for group in _by_case(evenly(progress.missing)):
        begin = time.perf_counter()
        if begin >= end:
            return
        case, is_sharded = group[0].case, group[0].sharded
        needed, free = required_bytes(case, is_sharded), machine.free_bytes(device)
        if needed > free:
            reason = f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB may be taken"
            log(f"skipped {case.key()}: {reason}")
            for measurement in group:
                progress.add("skipped", measurement, {"reason": reason})
            continue
        _measure_limit(case, device, preset, limits)
        devices = case.ranks if device.type == "cuda" else 1  # ranks on CPU share one memory
        gather = limits[_gather_case(case, threads)].times(devices)
        with closing((_measure_sharded if is_sharded else _measure_case)(group, device, preset)) as figures:
            for measurement, found in figures:
                now = time.perf_counter()
                if isinstance(found, Timing):
                    facts = row(measurement, found, gather, copy.times(devices)) | {"seconds": now - begin}
                    progress.add("rows", measurement, facts)
                    log(f"{_line(measurement, found)}   {progress.left()}")
                else:
                    progress.add("skipped" if "reason" in found else "failed", measurement, found)
                    log(f"{measurement.kernel} {measurement.mode} {case.key()}: {found}")
                begin = now
                if now >= end:
                    return


def _by_case(wanted: Iterable[Measurement]) -> list[list[Measurement]]:
    """Figures of one case together, kernel by kernel; a repeated figure is measured once."""
    groups: dict[tuple[bool, Case], dict[str, dict[str, Measurement]]] = {}
    for measurement in wanted:
        groups.setdefault((measurement.sharded, measurement.case), {}).setdefault(measurement.kernel, {}).setdefault(
            measurement.mode, measurement
        )
    return [
        [measurement for by_mode in by_kernel.values() for measurement in by_mode.values()]
        for by_kernel in groups.values()
    ]


def required_bytes(case: Case, sharded: bool) -> int:
    """Memory a case takes at its peak.

    Twice the tables: FBGEMM is given a copy of the random ones, unsharded TorchRec makes a dense gradient, Adagrad
    keeps a state. Tables of int8 cases are made in fp32 first. Sharded, data-parallel tables are whole on each rank,
    with a gradient and the buffer it is reduced in.
    """
    values = case.tables * case.rows * case.width
    if case.dtype == "int8":
        return values * ELEMENT_BYTES["fp32"] + 2 * case.table_bytes
    return case.table_bytes * (3 * case.ranks if sharded else 2)


def _gather_case(case: Case, threads: int) -> Case:
    """The case whose random gather limits ``case``: the whole machine, and only what a gather depends on."""
    return Case(
        rows=case.rows,
        width=case.width,
        pooling=case.pooling,
        skew=case.skew,
        dtype=case.dtype,
        batch=case.batch,
        tables=case.tables,
        threads=threads if case.ranks > 1 else case.threads,
    )


def _measure_limit(case: Case, device: torch.device, preset: Preset, limits: dict[Case, Bandwidth]) -> None:
    """Measure the random gather beside a case, unless another case has the same."""
    limit = _gather_case(case, preset.base.threads)
    if limit not in limits:
        torch.set_num_threads(limit.threads)
        sets = index_sets(limit, machine.cache_bytes(device))
        limits[limit] = machine.gather_bandwidth(limit, sets, device, preset.seconds, preset.samples)


def _measure_case(group: list[Measurement], device: torch.device, preset: Preset) -> Found:
    """The kernels of a case in this process, one after the other so that all see the machine in the same state."""
    case = group[0].case
    torch.set_num_threads(case.threads)
    sets = index_sets(case, machine.cache_bytes(device))
    for kernel, of_kernel in groupby(group, key=lambda measurement: measurement.kernel):
        todo = sorted(of_kernel, key=lambda measurement: (FORWARD, TRAIN).index(measurement.mode))
        try:
            for timing in _time_kernel(kernel, case, [measurement.mode for measurement in todo], sets, device, preset):
                yield todo.pop(0), timing
        except (RuntimeError, NotImplementedError, ValueError):
            error = traceback.format_exc(limit=-2)
            yield from ((measurement, {"error": error}) for measurement in todo)


def _time_kernel(
    kernel: str, case: Case, modes: list[str], sets: list[Tensor], device: torch.device, preset: Preset
) -> Iterator[Timing]:
    gc.collect()  # the tables of the kernel before
    built = build(kernel, case, random_tables(case, device))
    prepared = [built.prepare(indices) for indices in sets]
    for mode in modes:
        call = built.train if mode == TRAIN else built.forward
        yield measure(
            lambda turn, call=call: call(prepared[turn % len(prepared)]),  # type: ignore[misc]
            device,
            preset.seconds,
            preset.samples,
        )


def _measure_sharded(group: list[Measurement], device: torch.device, preset: Preset) -> Found:
    """All sharded kernels of a case in one set of ranks."""
    todo = list(group)
    try:
        with closing(sharded.run(group, device, preset.seconds, preset.samples)) as figures:
            for measurement, found in figures:
                todo.remove(measurement)
                yield measurement, {"error": found} if isinstance(found, str) else found
    except ValueError as error:
        why = {"reason": str(error)}
    except ProcessRaisedException as error:
        why = {"error": str(error)}
    yield from ((measurement, why) for measurement in todo)


def row(measurement: Measurement, timing: Timing, gather: Bandwidth, copy: Bandwidth) -> Result:
    """Rates of a figure and their share of the limits of all the devices it uses."""
    moved = measurement.case.moved_bytes(measurement.mode)
    rate = moved / timing.median
    return {
        "timing": asdict(timing),
        "moved_bytes": moved,
        "lookups_per_s": measurement.case.lookups / timing.median,
        "bytes_per_s": rate,
        "bytes_per_s_q1": moved / timing.q3,
        "bytes_per_s_q3": moved / timing.q1,
        "gather": asdict(gather),
        "percent_of_gather": 100 * rate / gather.best,
        "percent_of_copy": 100 * rate / copy.best,
    }


def _line(measurement: Measurement, timing: Timing) -> str:
    return (
        f"{measurement.sweep:>8} {measurement.x!s:<32} {measurement.kernel:<22} {measurement.mode:<17} "
        f"{timing.median * 1e3:8.2f} ms "
        f"{measurement.case.lookups / timing.median / 1e6:7.1f} M lookups/s "
        f"{measurement.case.moved_bytes(measurement.mode) / timing.median / 1e9:6.1f} GB/s"
    )
