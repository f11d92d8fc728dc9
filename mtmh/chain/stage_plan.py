"""Memory, disk and hours of each stage of a chain, by calculation, and what would break at that size.

Sizes come from the dataset or from ``plan``, the time of a training step from the planner (`training.plan`). Beside
those stand the rates below: assumptions, but for that of prepare. What depends on the data alone (texts, pictures, how
long a query is) is left open rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.table import Table

from mtmh.artifacts import MANIFEST
from mtmh.config import Config, PairsConfig
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import ITEMS
from mtmh.data.uniform_negatives import known_bytes
from mtmh.distributed.hardware import GIB, Cluster
from mtmh.index.kept_clusters import cluster_type, most_kept
from mtmh.index.lists import run_bytes
from mtmh.index.storage import IvfSettings, default_num_clusters
from mtmh.training.plan import Content, RunPlan, content_of, features_of

GB = 1e9
SHARED_DISK = 2.0 * GB  # bytes a second that a shared file system takes or gives, all ranks together
DIGESTS = 1.0 * GB  # bytes a second that a process reads and hashes
PREPARED = 100_000  # events a second and thread: 217,300 on two (docs/benchmarks, 20 November)
RANK_TFLOPS = 0.5  # float32 products of faiss on a rank's share of the host's cores, 10^12 a second
EVENT, EVENT_SCRATCH = 12, 96  # bytes an event, in the dataset and in the working tables of prepare
ITEM_PREPARED, ITEM_SHOWN = 48, 150  # bytes an item: held by prepare for a feature, in the files of what is shown
ITEM_ORDER, ITEM_SORTED = 20, 28  # bytes an item: of the files by which one is found, and held while ids are sorted
MANY_OPENS = 4_000_000


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: of the stage.
        ranks: processes that share it.
        memory: bytes that the processes of a host need for themselves.
        mapped: bytes of files of a host that are read at random, and fast while they are in its page cache.
        disk: bytes that are written, the most at a time.
        hours: None: not calculated.
        breaks: what would fail, and what to set.
    """

    name: str
    ranks: int = 1
    memory: float = 0.0
    mapped: float = 0.0
    disk: float = 0.0
    hours: float | None = None
    breaks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sizes:
    items: int
    events: int
    users: int
    item_table: int  # bytes an item of the model's inputs
    id_features: int
    content: Content | None
    items_file: float  # bytes of what is shown of the items

    @staticmethod
    def of(config: Config) -> _Sizes:
        schema, _, num_items = features_of(config.dataset_dir, config.plan)
        events, users = config.plan.events or 5 * num_items, config.plan.users
        shown = float(ITEM_SHOWN * num_items)
        if (config.dataset_dir / MANIFEST).exists():
            dataset = open_dataset(config.dataset_dir)
            events, users = dataset.summary.num_train_events, dataset.summary.num_users
            shown = float((dataset.artifact.path / ITEMS).stat().st_size)
        # A row number and an offset of each id feature, a float32 of the others, the training count.
        table = 12 * len(schema.id_features) + 4 * len(schema.float_features) + 8
        content = content_of(config, num_items)
        return _Sizes(num_items, events, users or -(-events // 50), table, len(schema.id_features), content, shown)


def plan_stages(config: Config, cluster: Cluster, run: RunPlan) -> list[StagePlan]:
    """Calculates the stages of a recipe, in their order.

    Args:
        config: the recipe.
        cluster: the hosts that all of them run on.
        run: the plan of its training.

    Raises:
        ValueError: index settings that do not fit each other.
    """
    sizes, ranks = _Sizes.of(config), cluster.world_size
    heads, dim = len(config.model.heads), config.model.head_dim
    vectors = 4.0 * heads * dim * sizes.items
    stages = [_prepare(config, sizes)]
    if config.needs_content:
        stages.append(_content(config, sizes, ranks))
    stages.append(_train(config, cluster, run, sizes))
    digests = vectors / (min(heads, ranks) * DIGESTS)
    stages.append(StagePlan("embed", ranks, disk=vectors, hours=(vectors / SHARED_DISK + digests) / 3600))
    if config.retrieval.needs_preranker:
        stages.append(_preranker(config, sizes))
    index, build = _build_index(config, cluster, sizes)
    stages += [build, _evaluate(config, sizes, vectors, index), StagePlan("serve", mapped=index)]
    room = cluster.device.host_memory * GIB
    for stage in stages:
        if stage.memory > room:
            stage.breaks.append(f"{stage.memory / GB:,.0f} GB in the memory of a host, which has {room / GB:,.0f} GB")
    return stages


def num_pairs(events: int, users: int, pairs: PairsConfig) -> float:
    """Pairs of an epoch, if all users had the mean number of events: each with the ``window`` events before it."""
    mean = events / max(1, users)
    window = min(pairs.window, mean)
    return users * max(0.0, mean * window - window * (window + 1) / 2) * (2 if pairs.direction == "both" else 1)


def stages_view(stages: Iterable[StagePlan]) -> Table:
    """A line a stage, for people."""
    view = Table(title="The chain, GB", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    view.add_column("stage")
    for name in ("ranks", "memory", "mapped", "disk", "hours"):
        view.add_column(name, justify="right")
    for stage in stages:
        hours = "" if stage.hours is None else f"{stage.hours:,.1f}"
        view.add_row(
            stage.name,
            str(stage.ranks),
            *(f"{size / GB:,.0f}" for size in (stage.memory, stage.mapped, stage.disk)),
            hours,
        )
    return view


def _prepare(config: Config, sizes: _Sizes) -> StagePlan:
    data, dataset = config.data, sizes.events * EVENT + sizes.items * sizes.item_table + sizes.items_file
    if data.engine == "spark":
        return StagePlan("prepare", disk=dataset)
    return StagePlan(
        "prepare",
        memory=data.memory_limit_gb * GB + ITEM_PREPARED * sizes.items + 16 * sizes.users,
        disk=dataset + EVENT_SCRATCH * sizes.events,
        hours=sizes.events / (PREPARED * data.threads) / 3600,
    )


def _content(config: Config, sizes: _Sizes, ranks: int) -> StagePlan:
    content, kind = sizes.content, config.content.kind
    written = content.num_bytes if content else 0
    unknown = (
        [] if content else ["nothing tells the width of the embeddings, so they are not counted: set plan.content_dim"]
    )
    if kind != "column":
        return StagePlan("content", ranks, disk=2.0 * written, breaks=unknown)  # the shards, and all of it
    return StagePlan("content", disk=written, hours=2.0 * written / SHARED_DISK / 3600, breaks=unknown)


def _train(config: Config, cluster: Cluster, run: RunPlan, sizes: _Sizes) -> StagePlan:
    training, content = config.training.sized(), sizes.content
    state = sum(rank.weights + rank.optimizer + rank.id_maps + rank.towers for rank in run.memory)
    steps = num_pairs(sizes.events, sizes.users, config.pairs) / training.global_batch
    epochs = training.epochs if isinstance(training.epochs, int) else 1
    steps = min(steps * epochs, training.max_steps or steps * epochs)
    runs = 2 if config.trains_without_end else 1  # the first without the end of T1
    rides = config.data.item_features == "ride_along"
    known = 0 if rides else known_bytes(sizes.items) * cluster.ranks_per_host
    copies = state / cluster.num_hosts if training.async_checkpoint else 0
    mapped = 0.0 if rides else float(sizes.item_table * sizes.items)
    if content is not None and config.content.storage == "mapped":
        mapped += content.num_bytes
    return StagePlan(
        "train",
        cluster.world_size,
        memory=known + copies,
        mapped=mapped,
        disk=(runs * training.keep_checkpoints + 1) * state,
        hours=runs * steps * run.step_milliseconds / 3.6e6,
    )


def _preranker(config: Config, sizes: _Sizes) -> StagePlan:
    # Two tables of neighbours and their weights, and the engagements as a matrix in three forms.
    tables = 2.0 * 6 * config.preranker.neighbours * sizes.items
    breaks = ["counts co-occurrence for at most 2.1 billion items"] if sizes.items > 2**31 else []
    if tables > 1000 * GB:
        breaks.append(
            f"{tables / GB:,.0f} GB of neighbours; --set retrieval.sorter=head-score goes without the preranker"
        )
    return StagePlan("train-preranker", memory=tables + 24.0 * sizes.events, disk=tables, breaks=breaks)


def _build_index(config: Config, cluster: Cluster, sizes: _Sizes) -> tuple[float, StagePlan]:
    """Bytes of the finished index, and the stage."""
    settings, heads, dim, items = config.index, len(config.model.heads), config.model.head_dim, sizes.items
    codes = {"flat": 4 * dim, "fp16": 2 * dim, "sq8": dim, "pq": settings.pq.m * settings.pq.bits / 8}
    code = 8 + codes.get(settings.storage, dim / 4)  # an item index beside each
    beside = 0 if settings.storage in ("flat", "fp16") else dim * (2 if settings.vectors == "fp16" else 4)
    clusters = IvfSettings.of(settings, config.seed).clusters(items)
    wanted = default_num_clusters(items, items)
    shard = min(settings.shard_items, items)
    total = int(code * items)
    opens = 4 * -(-items // settings.shard_items) * -(-total // run_bytes(total)) * heads  # codes and items, header too
    breaks = []
    if settings.num_clusters is None and clusters < wanted // 2:
        breaks.append(
            f"{settings.train_sample:,} sampled vectors cap the clusters at {clusters:,} of {wanted:,}, so that a list "
            f"has {items // clusters:,} items; --set index.train_sample={8 * wanted}"
        )
    if opens > MANY_OPENS:
        breaks.append(f"merging opens files {opens:,} times; --set index.shard_items=4000000")
    read, lists = 4.0 * heads * dim * items, heads * code * items
    shown = max(ITEM_SHOWN * items, sizes.items_file) + ITEM_ORDER * items
    kept = most_kept(settings.storage, dim, clusters) * np.dtype(cluster_type(clusters)).itemsize  # at most
    index = lists + heads * (beside + kept) * items + shown
    assignment = 2.0 * dim * clusters * items * heads / (cluster.world_size * RANK_TFLOPS * 1e12)
    a_rank = shard * (4 * dim + code) + min(3 * GB, lists) + 4.0 * dim * min(settings.train_sample, items)
    hours = ((read + lists + index) / SHARED_DISK + assignment) / 3600
    disk = index + lists  # shards beside what they are merged into
    memory = max(a_rank * cluster.ranks_per_host, ITEM_SORTED * items)
    return index, StagePlan("build-index", cluster.world_size, memory=memory, disk=disk, hours=hours, breaks=breaks)


def _evaluate(config: Config, sizes: _Sizes, vectors: float, index: float) -> StagePlan:
    settings, parts = config.evaluation, dict[str, float]()
    if settings.exact_search:
        parts["evaluation.exact_search"] = vectors
    if "teacher" in settings.yardsticks and sizes.content:
        parts["yardstick teacher"] = 4.0 * sizes.content.dim * sizes.items
    if {"item-item", "ease", "als"} & {*settings.yardsticks}:
        parts["yardsticks of histories"] = 24.0 * sizes.events
    large = [f"{name} holds {size / GB:,.0f} GB" for name, size in parts.items() if size > 500 * GB]
    return StagePlan("evaluate", memory=sum(parts.values()), mapped=index, breaks=large)
