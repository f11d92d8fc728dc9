"""The retriever over a small index artifact."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ivf_in_memory import build_ivf
from rich.console import Console
from synthetic_dataset import make_config

from mtmh.artifacts import MANIFEST, sealed
from mtmh.cli.answer_table import retrieval_table
from mtmh.config import IndexConfig, RetrievalConfig
from mtmh.distributed.ranks import join_ranks
from mtmh.index import write
from mtmh.index.artifact import RankedBy, index_file
from mtmh.index.vector_index import IvfIndex
from mtmh.retrieval import parallel_search
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.merge import head_quotas, head_shares
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import HistoryPreranker
from mtmh.retrieval.retriever import Retriever
from mtmh.signing import sign, write_keys
from mtmh.tower.artifact import vectors_file

NUM_ITEMS, DIM = 80, 8
HEADS = ["engagement", "relevance"]


def write_index(
    path: Path, *, ids: pa.Array, heads: list[str] = HEADS, change: dict[str, object] | None = None
) -> Path:
    rng = np.random.default_rng(0)
    config = make_config(path.parent, retrieval={"k": 6, "k_ann": 40, "num_probes": 9, "alpha": 50})
    path.with_name(f"{path.name}-vectors").mkdir(parents=True)
    for head in heads:
        vectors = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
        np.save(vectors_of(path, head), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def finish(folder: Path) -> dict[str, object]:
        items = {
            "item_id": ids,
            "text": [f"[item] {item}" for item in range(NUM_ITEMS)],
            "topic_l1": ["a", None] * (NUM_ITEMS // 2),
            "topic_l2": ["a1", None] * (NUM_ITEMS // 2),
            "train_count": np.arange(NUM_ITEMS),
        }
        pq.write_table(pa.table(items), folder / "items.parquet")
        return change or {}

    with join_ranks("cpu") as ranks:
        write.write_index(
            write.Source(vectors_of(path, heads[0]).parent, heads, DIM, NUM_ITEMS, "int64"),
            IndexConfig(num_clusters=9),
            path,
            ranks,
            write.IndexRecord(config.model_dump(mode="json"), {}, {}),
            finish,
            ranked_by=RankedBy(preranker="head-score", sorter="head-score", temperature=0.1),
            num_probes=3,
            seed=0,
        )
    return path


def vectors_of(index_dir: Path, head: str) -> Path:
    return index_dir.with_name(f"{index_dir.name}-vectors") / vectors_file(head)


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    return write_index(tmp_path / "index", ids=pa.array(np.arange(NUM_ITEMS) * 100 + 7))


def id_of(item: int) -> int:
    return item * 100 + 7


def expected_lists(index_dir: Path, trigger: int, count: int, without: tuple[int, ...] = ()) -> list[list[int]]:
    lists = []
    for head in HEADS:
        vectors = np.load(vectors_of(index_dir, head), allow_pickle=False).astype(np.float64)
        ranked = np.argsort(-(vectors @ vectors[trigger]), kind="stable").tolist()
        lists.append([item for item in ranked if item != trigger and item not in without][:count])
    return lists


@pytest.mark.parametrize("alpha", [0, 20, 50, 100])
def test_answers_are_the_quota_merge_of_the_heads(index_dir: Path, alpha: float) -> None:
    retriever = Retriever.load(index_dir)
    triggers = [3, 50, 3]
    answers = retriever.retrieve(Query([id_of(trigger) for trigger in triggers], k=6, alpha=alpha))
    quotas = head_quotas(head_shares(alpha, 2), 6)
    for trigger, found in zip(triggers, answers, strict=True):
        engagement, relevance = expected_lists(index_dir, trigger, 6)
        taken = engagement[: quotas[0]]
        taken = taken + [item for item in relevance if item not in taken][: quotas[1]]
        assert [answer.item for answer in found] == [id_of(item) for item in taken]
        assert [answer.head for answer in found] == [HEADS[0]] * quotas[0] + [HEADS[1]] * quotas[1]
        assert {answer.trigger for answer in found} == {id_of(trigger)}
        for answer in found:
            item = (int(answer.item) - 7) // 100
            for field, head in (("score", HEADS[0]), ("similarity", answer.head)):
                vectors = retriever.vectors[head]
                assert getattr(answer, field) == pytest.approx(float(vectors[trigger] @ vectors[item]), abs=1e-5)


def test_a_preranker_and_a_sorter_take_the_place_of_the_defaults(index_dir: Path) -> None:
    loaded = Retriever.load(index_dir)
    indexes = {head: build_ivf(loaded.vectors[head], num_clusters=1) for head in HEADS}
    by_history = HistoryPreranker("relevance", loaded.vectors["relevance"], 0.1)
    retriever = Retriever(
        indexes, loaded.vectors, loaded.catalogue, loaded.defaults, preranker=by_history, sorter=by_history
    )
    answers = retriever.retrieve(Query([id_of(3)], k=6, alpha=100))[0]
    similarity = loaded.vectors["engagement"] @ loaded.vectors["engagement"][3]
    among = np.argsort(-similarity, kind="stable")[1:41].tolist()
    by_relevance = loaded.vectors["relevance"] @ loaded.vectors["relevance"][3]
    expected = sorted(among, key=lambda item: -by_relevance[item])[:6]
    assert [answer.item for answer in answers] == [id_of(item) for item in expected]
    assert [answer.score for answer in answers] == pytest.approx(by_relevance[expected].tolist(), abs=1e-5)


def test_excluded_items_leave_their_place_to_others(index_dir: Path) -> None:
    retriever = Retriever.load(index_dir)
    engagement, _ = expected_lists(index_dir, 3, 10)
    exclude = tuple(engagement[:4])
    answers = retriever.retrieve(
        Query([id_of(3)], k=6, k_ann=6, alpha=100, filters=Filters(exclude=[id_of(item) for item in exclude]))
    )[0]
    assert [answer.item for answer in answers] == [id_of(item) for item in engagement[4:10]]


def test_candidates_beyond_the_catalogue(index_dir: Path) -> None:
    retriever = Retriever.load(index_dir)
    answers = retriever.retrieve(Query([id_of(0)], k=200, k_ann=5000))[0]
    assert len(answers) == len({answer.item for answer in answers}) == NUM_ITEMS - 1
    assert id_of(0) not in [answer.item for answer in answers]


def test_exact_and_fully_probed_search_agree(index_dir: Path) -> None:
    retriever = Retriever.load(index_dir)
    triggers = [id_of(item) for item in range(NUM_ITEMS)]
    ann, exact = retriever.retrieve(Query(triggers, num_probes=9)), retriever.exact().retrieve(Query(triggers))
    assert [[answer.item for answer in row] for row in ann] == [[answer.item for answer in row] for row in exact]


def test_probes_that_the_recipe_leaves_open_are_those_that_the_build_chose(index_dir: Path) -> None:
    assert Retriever.load(index_dir).num_probes == 9, "the recipe says so"
    assert Retriever.load(index_dir, RetrievalConfig(k=6, num_probes="auto")).num_probes == 3


def test_no_triggers(index_dir: Path) -> None:
    assert Retriever.load(index_dir).retrieve(Query([])) == []


def test_string_ids_and_integer_ids_given_as_text(tmp_path: Path, index_dir: Path) -> None:
    names = [f"B{item:03}" for item in range(NUM_ITEMS)]
    by_name = Retriever.load(write_index(tmp_path / "named", ids=pa.array(names)))
    by_number = Retriever.load(index_dir)
    named, numbered = by_name.retrieve(Query(["B003"]))[0], by_number.retrieve(Query(["307"]))[0]
    assert [names.index(str(answer.item)) for answer in named] == [(int(a.item) - 7) // 100 for a in numbered]
    assert numbered[0].trigger == 307


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triggers": [7, 5, 8]}, "unknown trigger 5, 8: not among the 80 items"),
        ({"triggers": ["B003"]}, "of type int64"),
        ({"triggers": [2**70]}, "of type int64"),
        (
            {"triggers": [7], "filters": Filters(exclude=["x"])},
            "excluded item 'x': item ids of this",
        ),
        ({"triggers": [True]}, "of type int64"),
        ({"triggers": [7], "alpha": 50, "shares": {"engagement": 1.0}}, "give one of them"),
        ({"triggers": [7], "shares": {"relevanz": 1.0}}, "no head relevanz; the heads are engagement, relevance"),
        ({"triggers": [7], "shares": {"relevance": 0.6}}, "sum to 1"),
        ({"triggers": [7], "shares": {"relevance": float("nan")}}, "sum to 1"),
        ({"triggers": [7], "k": 0}, "k is 0"),
        ({"triggers": [7], "k": 9, "k_ann": 8}, "k is 9, more than the 8"),
        ({"triggers": [7], "num_probes": 0}, "num_probes is 0"),
        ({"triggers": [7], "alpha": 101}, "alpha is 101"),
        ({"triggers": [7], "alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_bad_requests(index_dir: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retriever.load(index_dir).retrieve(Query(**arguments))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    ids = pa.array(np.arange(NUM_ITEMS))
    with pytest.raises(ValueError, match="no index is published here"):
        Retriever.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"engagement.lists: 3200 bytes, which are not the codes of 81 vectors"):
        Retriever.load(write_index(tmp_path / "more", ids=ids, change={"num_items": 81}))


def test_requests_of_several_threads_do_not_disturb_each_other(index_dir: Path) -> None:
    retriever = Retriever.load(index_dir)
    triggers = [id_of(item) for item in range(NUM_ITEMS)]
    alone = {probes: retriever.retrieve(Query(triggers, num_probes=probes)) for probes in (1, 9)}
    assert alone[1] != alone[9]
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(
            lambda probes: (probes, retriever.retrieve(Query(triggers, num_probes=probes))), [1, 9] * 20
        )
        assert all(found == alone[probes] for probes, found in answers)


def test_side_by_side(index_dir: Path) -> None:
    retriever = Retriever.load(index_dir)
    shown = retriever.retrieve_side_by_side(Query(["307"], k=4, alpha=50))
    assert [[answer.item for answer in shown.heads[head]] for head in HEADS] == [
        [id_of(item) for item in items] for items in expected_lists(index_dir, 3, 4)
    ]
    assert shown.merged == retriever.retrieve(Query([307], k=4, alpha=50))[0]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(retrieval_table(shown))
    text = console.export_text()
    for answer in [*shown.heads["engagement"], *shown.heads["relevance"]]:
        assert f"{answer.item} [item] {(int(answer.item) - 7) // 100}" in text
    assert "Trigger 307: [item] 3" in text
    assert "engagement head" in text
    assert "merged, alpha = 50" in text


def test_one_head(tmp_path: Path) -> None:
    retriever = Retriever.load(write_index(tmp_path / "one", ids=pa.array(np.arange(NUM_ITEMS)), heads=["engagement"]))
    shown = retriever.retrieve_side_by_side(Query([3], k=4))
    assert shown.merged == shown.heads["engagement"]
    assert [column.header for column in retrieval_table(shown).columns] == ["#", "engagement head"]


def test_every_head_is_searched_with_the_threads_of_who_asks(index_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_search, "usable_cores", lambda: 2)
    seen: list[tuple[bool, int]] = []
    search = IvfIndex.search

    def recording(*arguments: object, **settings: object) -> object:
        seen.append((threading.current_thread().name.startswith("head-search"), faiss.omp_get_max_threads()))
        return search(*arguments, **settings)

    monkeypatch.setattr(IvfIndex, "search", recording)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        Retriever.load(index_dir).retrieve(Query([id_of(1)], k=5))
    finally:
        faiss.omp_set_num_threads(before)
    assert sorted(seen) == [(False, 3), (True, 3)]


@pytest.mark.parametrize(
    ("cores", "taken", "in_parallel"), [(4, 0, True), (4, 2, True), (4, 3, False), (2, 0, True), (1, 0, False)]
)
def test_heads_are_searched_side_by_side_while_cores_are_free(
    index_dir: Path, monkeypatch: pytest.MonkeyPatch, cores: int, taken: int, in_parallel: bool
) -> None:
    monkeypatch.setattr(parallel_search, "usable_cores", lambda: cores)
    seen: list[bool] = []
    search = IvfIndex.search

    def recording(*arguments: object, **settings: object) -> object:
        seen.append(threading.current_thread().name.startswith("head-search"))
        return search(*arguments, **settings)

    monkeypatch.setattr(IvfIndex, "search", recording)
    retriever = Retriever.load(index_dir)
    with retriever._searches.cores.share(1, taken):  # what other requests search with meanwhile
        retriever.retrieve(Query([id_of(1)], k=5))
    assert sorted(seen) == [False, in_parallel]
    seen.clear()
    retriever.retrieve(Query([id_of(1)], k=5))
    assert sorted(seen) == [False, cores > 1], "the others have ended"


@pytest.mark.parametrize("section", ["service", "chain", "training"])
def test_an_index_is_read_whose_recipe_had_a_setting_that_is_gone(index_dir: Path, section: str) -> None:
    record_setting(index_dir, section, "max_sockets", 7)
    assert Retriever.load(index_dir).num_items == NUM_ITEMS


def test_an_unknown_recorded_setting_that_a_retriever_needs_is_named_with_the_index(index_dir: Path) -> None:
    record_setting(index_dir, "retrieval", "num_prob", 7)
    with pytest.raises(ValueError, match=r"retrieval\.num_prob: no such setting.* or make it anew") as refused:
        Retriever.load(index_dir)
    assert str(refused.value).startswith(f"{index_dir}: ")


def record_setting(index_dir: Path, section: str, name: str, value: object) -> None:
    manifest = json.loads((index_dir / MANIFEST).read_text())
    manifest["config"][section][name] = value
    (index_dir / MANIFEST).write_text(json.dumps(sealed(manifest)))


def test_only_versions_signed_with_the_trusted_key_are_opened(index_dir: Path, tmp_path: Path) -> None:
    settings = RetrievalConfig(k=6, k_ann=40, trusted_key=write_keys(tmp_path / "key"))
    with pytest.raises(ValueError, match="index: not signed"):
        Retriever.load(index_dir, settings)
    sign(index_dir, tmp_path / "key")
    assert Retriever.load(index_dir, settings).num_items == NUM_ITEMS
    lists = index_dir / index_file(HEADS[0])
    lists.write_bytes(lists.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{lists.name}: altered since it was written"):
        Retriever.load(index_dir, settings)
