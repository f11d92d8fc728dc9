"""Runs the measurements of a preset, each beside the limits of the machine at the same indices."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from benchmarks.lookup import machine, sharded
from benchmarks.lookup.cases import ELEMENT_BYTES, FORWARD, TRAIN, Case, Measurement, Preset, index_sets, measurements
from benchmarks.lookup.kernels import build, random_tables
from benchmarks.lookup.machine import Bandwidth
from benchmarks.lookup.timing import Timing, measure

FORMAT = 1
Result = dict[str, Any]
Timings = dict[tuple[str, str, Case], Timing]  # by kernel, mode, case


def run(preset: Preset, device: torch.device, ranks: int, log: Callable[[str], None]) -> Result:
    """Measure everything in a preset.

    Args:
        preset: Base case, sweeps, time for each figure.
        device: Where the tables live.
        ranks: Ranks of the sharded cases, 0 for none.
        log: Takes one line about each figure.

    Returns:
        Ready for JSON: ``machine``; ``copy``; ``rows``, one for each figure of each sweep; ``skipped`` (no memory, too
        few GPUs); ``failed`` (errors); ``cores_others_kept_busy``, how quiet the machine was.
    """
    threads = preset.base.threads
    torch.set_num_threads(threads)
    begin, (everybody, own) = time.perf_counter(), machine.cpu_seconds()
    copy = machine.copy_bandwidth(device, preset.seconds, preset.samples)
    log(f"copy bandwidth {copy.best / 1e9:.1f} GB/s ({copy.method})")
    result: Result = {
        "format": FORMAT,
        "machine": machine.describe(device, threads),
        "copy": asdict(copy),
        "rows": [],
        "skipped": [],
        "failed": [],
    }
    wanted = list(measurements(preset, device.type, ranks))
    limits: dict[Case, Bandwidth] = {}
    timings: Timings = {}
    for sharded_ones, run_case in ((False, _measure_case), (True, _measure_sharded)):
        for case, group in _by_case(one for one in wanted if one.sharded == sharded_ones):
            needed, free = required_bytes(case, sharded_ones), machine.free_bytes(device)
            if needed > free:
                reason = f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB may be taken"
                log(f"skipped {case.key()}: {reason}")
                result["skipped"] += [_entry(one) | {"reason": reason} for one in group]
            else:
                _measure_limit(case, device, preset, limits)
                timings |= run_case(case, group, device, preset, result, log)
    for one in wanted:
        timing = timings.get((one.kernel, one.mode, one.case))
        if timing is not None:
            devices = one.case.ranks if device.type == "cuda" else 1  # ranks on CPU share one memory
            gather = limits[_gather_case(one.case, threads)].times(devices)
            result["rows"].append(_entry(one) | row(one, timing, gather, copy.times(devices)))
    everybody, own = (after - before for after, before in zip(machine.cpu_seconds(), (everybody, own), strict=True))
    result["cores_others_kept_busy"] = max(0.0, everybody - own) / (time.perf_counter() - begin)
    return result


def _by_case(wanted: Iterable[Measurement]) -> list[tuple[Case, list[Measurement]]]:
    """Measurements of one case together, cases on the same tables side by side; a repeated figure is measured once."""
    distinct = {(one.kernel, one.mode, one.case): one for one in wanted}
    order = sorted(distinct.values(), key=lambda one: one.case.key())
    return [(case, list(group)) for case, group in groupby(order, key=lambda one: one.case)]


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


def _measure_case(
    case: Case,
    group: list[Measurement],
    device: torch.device,
    preset: Preset,
    result: Result,
    log: Callable[[str], None],
) -> Timings:
    """The kernels of a case in this process, one after the other so that all see the machine in the same state."""
    torch.set_num_threads(case.threads)
    sets = index_sets(case, machine.cache_bytes(device))
    timings: Timings = {}
    for kernel, of_kernel in groupby(group, key=lambda one: one.kernel):
        todo = list(of_kernel)
        try:
            found = _time_kernel(kernel, case, [one.mode for one in todo], sets, device, preset)
        except (RuntimeError, NotImplementedError, ValueError):
            result["failed"] += [_entry(one) | {"error": traceback.format_exc(limit=-2)} for one in todo]
            log(f"FAILED {kernel} {case.key()}: {traceback.format_exc(limit=-1)}")
            continue
        for one in todo:
            timings[kernel, one.mode, case] = found[one.mode]
            log(_line(one, found[one.mode]))
    return timings


def _time_kernel(
    kernel: str, case: Case, modes: list[str], sets: list[Tensor], device: torch.device, preset: Preset
) -> dict[str, Timing]:
    gc.collect()  # the tables of the kernel before
    built = build(kernel, case, random_tables(case, device))
    prepared = [built.prepare(one) for one in sets]
    found = {}
    for mode in sorted(modes, key=(FORWARD, TRAIN).index):
        call = built.train if mode == TRAIN else built.forward
        found[mode] = measure(
            lambda turn, call=call: call(prepared[turn % len(prepared)]),  # type: ignore[misc]
            device,
            preset.seconds,
            preset.samples,
        )
    return found


def _measure_sharded(
    case: Case,
    group: list[Measurement],
    device: torch.device,
    preset: Preset,
    result: Result,
    log: Callable[[str], None],
) -> Timings:
    """All sharded kernels of a case in one set of ranks."""
    timings: Timings = {}
    try:
        found = sharded.run(group, device, preset.seconds, preset.samples)
    except ValueError as error:
        log(f"skipped the sharded cases: {error}")
        result["skipped"] += [_entry(one) | {"reason": str(error)} for one in group]
        return timings
    except ProcessRaisedException as error:
        log(f"FAILED the sharded cases: {error}")
        result["failed"] += [_entry(one) | {"error": str(error)} for one in group]
        return timings
    for one, timing in found:
        if isinstance(timing, str):
            result["failed"].append(_entry(one) | {"error": timing})
            log(f"FAILED {one.kernel} {one.mode}: {timing}")
        else:
            timings[one.kernel, one.mode, case] = timing
            log(_line(one, timing))
    return timings


def row(one: Measurement, timing: Timing, gather: Bandwidth, copy: Bandwidth) -> Result:
    """Rates of a figure and their share of the limits of all the devices it uses."""
    moved = one.case.moved_bytes(one.mode)
    rate = moved / timing.median
    return {
        "timing": asdict(timing),
        "moved_bytes": moved,
        "lookups_per_s": one.case.lookups / timing.median,
        "bytes_per_s": rate,
        "bytes_per_s_q1": moved / timing.q3,
        "bytes_per_s_q3": moved / timing.q1,
        "gather": asdict(gather),
        "percent_of_gather": 100 * rate / gather.best,
        "percent_of_copy": 100 * rate / copy.best,
    }


def _entry(one: Measurement) -> Result:
    return {"sweep": one.sweep, "x": one.x, "kernel": one.kernel, "mode": one.mode, "case": asdict(one.case)}


def _line(one: Measurement, timing: Timing) -> str:
    return (
        f"{one.sweep:>8} {one.x!s:<32} {one.kernel:<22} {one.mode:<17} {timing.median * 1e3:8.2f} ms "
        f"{one.case.lookups / timing.median / 1e6:7.1f} M lookups/s "
        f"{one.case.moved_bytes(one.mode) / timing.median / 1e9:6.1f} GB/s"
    )
