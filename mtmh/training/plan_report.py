"""A plan for people: its tables, the memory of each rank, the time of a step."""

from __future__ import annotations

from statistics import fmean

from rich import box
from rich.console import Group
from rich.table import Table

from mtmh.distributed.hardware import GIB
from mtmh.training.plan import RunPlan

MEMORY = {
    "weights": "weights",
    "optimizer": "optimizer",
    "id_maps": "id maps",
    "buffers": "inputs + outputs",
    "towers": "towers",
    "batch": "batch",
    "negatives": "negatives",
    "loss": "loss",
    "total": "total",
}


def plan_report(plan: RunPlan) -> Group:
    """Tables and sentences to print."""
    cluster = plan.cluster
    head = (
        f"{cluster.num_hosts} x {cluster.ranks_per_host} {cluster.device_name}; rows from {plan.source}; "
        f"a rank embeds up to {plan.rank_items:,} items a step"
    )
    cost = plan.step
    step = (
        f"Estimated embedding time of a step: {plan.milliseconds:.2f} ms; the bottleneck is {plan.bottleneck.name} of "
        f"table {plan.bottleneck.table} (rank {plan.bottleneck.rank}). Beside the tables: towers {cost.towers_ms:.2f} "
        f"ms, exchange of negatives {cost.exchange_ms:.2f} ms, loss {cost.loss_ms:.2f} ms, so "
        f"{plan.step_milliseconds:.2f} ms a step if nothing overlaps; meanwhile the loader makes a batch in "
        f"{cost.loader_ms:.2f} ms."
    )
    parts: list[str | Table] = [head, _tables_view(plan), _memory_view(plan), _stages_view(plan), step]
    return Group(*parts, *(f"Note: {note}" for note in plan.notes))


def _tables_view(plan: RunPlan) -> Table:
    view = Table(title="Embedding tables", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    view.add_column("table", no_wrap=True)
    for name in ("rows", "width", "GiB"):
        view.add_column(name, justify="right", no_wrap=True)
    for name in ("type", "sharding", "kernel"):
        view.add_column(name, no_wrap=True)
    view.add_column("ranks")
    for table in plan.tables:
        size = (f"{table.num_rows:,}", str(table.dim), f"{table.weight_bytes / GIB:.2f}")
        view.add_row(table.name, *size, table.data_type, table.sharding_type, table.kernel, _ranges(table.ranks))
    return view


def _memory_view(plan: RunPlan) -> Table:
    room = f"{plan.usable / GIB:.2f} of {plan.cluster.rank_memory / GIB:.2f}"
    view = Table(title=f"Memory of a rank, GiB (tables may take {room})", box=box.SIMPLE)
    view.add_column("ranks")
    shown = [key for key in MEMORY if key != "id_maps" or any(memory.id_maps for memory in plan.memory)]
    for key in shown:
        view.add_column(MEMORY[key], justify="right")
    alike: dict[tuple[str, ...], list[int]] = {}
    for rank, memory in enumerate(plan.memory):
        alike.setdefault(tuple(f"{getattr(memory, key) / GIB:.2f}" for key in shown), []).append(rank)
    for cells, ranks in alike.items():
        view.add_row(_ranges(ranks), *cells)
    view.add_section()
    columns = [[getattr(memory, key) for memory in plan.memory] for key in shown]
    for name, summary in (("min", min), ("mean", fmean), ("max", max)):
        view.add_row(name, *(f"{summary(column) / GIB:.2f}" for column in columns))
    return view


def _stages_view(plan: RunPlan) -> Table:
    view = Table(title="Time of a step, embeddings only", box=box.SIMPLE)
    for name in ("part", "slowest rank", "its slowest table"):
        view.add_column(name)
    view.add_column("ms", justify="right")
    for stage in plan.stages:
        view.add_row(stage.name, str(stage.rank), stage.table, f"{stage.milliseconds:.3f}")
    return view


def _ranges(ranks: list[int]) -> str:
    """Ascending ranks, runs shortened: 0-3, 5."""
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends, strict=True))
