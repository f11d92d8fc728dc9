"""Fresh items: durable, answered at once, taken over by new versions; and what is refused."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.content.fresh import FreshContent
from mtmh.errors import RequestError
from mtmh.index.build import build_version
from mtmh.index.versions import current_version, new_version, publish, rollback
from mtmh.index.writers import writing
from mtmh.live import live_index
from mtmh.live.compaction import compact
from mtmh.live.live_index import LiveIndex
from mtmh.live.segments import ChangesLostError, last_change, merge_segments, read_segments
from mtmh.retrieval.catalogue import UnknownItemError
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.tower.embed import embed_catalogue
from mtmh.training.trainer import train


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("live")
    write_inputs(root)
    config = tiny_config(root, training={"max_steps": 4}, index={"num_clusters": 12}, retrieval={"num_probes": 12})
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_version(config)
    return config


@pytest.fixture
def index_dir(built: Config, tmp_path: Path) -> Path:
    """A folder of its own with the version, as a hard-linked copy."""
    source = built.model_dir("index")
    for file in source.rglob("*"):
        if file.is_file():
            target = tmp_path / "index" / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)
    return tmp_path / "index"


def row(item_id: int, **fields: Any) -> dict[str, Any]:
    rng = np.random.default_rng(item_id)
    features = {
        "brand": int(rng.integers(1, 7)) * 100,
        "tags": [f"tag {rng.integers(1, 9)}"],
        "price": 0.3,
        "age": None,
    }
    return {"item_id": item_id, **features, **fields}


def answers(retriever: Retriever, trigger: int, **settings: Any) -> list[int]:
    return [int(answer.item) for answer in retriever.retrieve(Query([trigger], k=300, k_ann=400, **settings))[0]]


def test_added_items_are_answers_and_triggers_at_once_and_after_a_restart(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    before = live.retriever
    assert (before.version, before.num_items) == ("000001", 200)
    assert live.add([row(1, text="new one", topic_l1="a"), row(2)]) == [1, 2]
    for retriever in (live.retriever, LiveIndex(index_dir).retriever):
        assert (retriever.version, retriever.num_items) == ("000001+1", 202)
        assert {1, 2} <= set(answers(retriever, 30))
        assert set(answers(retriever, 1)) == {2, *range(0, 2000, 10)}
        assert answers(retriever, 30, filters=Filters(topic_l1=["a"])) == [1]
        assert {1, 2} <= set(answers(retriever, 30, filters=Filters(min_first_seen=10**9)))
        assert retriever.describe([1])[0].text == "new one"
        assert retriever.catalogue.answers(["item_id"]).column("item_id").to_pylist()[-2:] == [1, 2]
    assert 1 not in answers(before, 30), "who holds the old state goes on with it"
    with pytest.raises(UnknownItemError):
        before.retrieve(Query([1]))


def test_a_fresh_item_answers_as_an_item_of_the_index_with_its_vectors(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    live.add([row(item) for item in range(1, 10)])
    retriever = live.retriever
    table = retriever.tower.features.table([row(item) for item in range(1, 10)])
    fresh = retriever.tower.embed(table)
    for head in retriever.heads:
        vectors = np.concatenate([retriever.vectors[head].base[:], fresh[head]])
        ids = [*range(0, 2000, 10), *range(1, 10)]
        for trigger in (0, 55, 199, 204):
            similarity = vectors.astype(np.float64) @ vectors[trigger]
            expected = [place for place in np.argsort(-similarity, kind="stable") if place != trigger][:40]
            found = retriever.retrieve(Query([ids[trigger]], k=40, shares={head: 1.0}))[0]
            scores = [similarity[ids.index(answer.item)] for answer in found]
            np.testing.assert_allclose(scores, similarity[expected], atol=1e-5)
            np.testing.assert_allclose([answer.similarity for answer in found], scores, atol=1e-5)


def test_removed_items_are_in_no_answer_until_they_are_added_again(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    live.add([row(1)])
    live.remove([1, "20"])
    for retriever in (live.retriever, LiveIndex(index_dir).retriever):
        assert retriever.num_items == 199
        assert not {1, 20} & set(answers(retriever, 30))
        assert len(answers(retriever, 30)) == 198
        assert len(answers(retriever, 20)) == 199, "a removed item may still be a trigger"
    with pytest.raises(UnknownItemError, match="unknown item 20"):
        live.remove([30, 20])
    assert live.retriever.num_items == 199
    live.add([row(1, text="again"), row(20)])
    for retriever in (live.retriever, LiveIndex(index_dir).retriever):
        assert (answers(retriever, 30).count(1), answers(retriever, 30).count(20)) == (1, 1)
        assert retriever.describe([1])[0].text == "again"
    assert last_change(index_dir) == 3


def test_an_item_that_comes_back_keeps_what_training_made_of_it(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    before = live.retriever
    assert before.catalogue.find_trained([20])[0] >= 0
    live.add([row(1)])
    live.remove([20, 1])
    live.add([row(20, text="again", price=9.9), row(1, price=9.9)])
    live.remove([30])
    version = copy_version(index_dir)
    publish(version)
    live.refresh()
    for merged in (False, True):
        if merged:
            merge_segments(index_dir, last_change(index_dir))
        for retriever in (live.retriever, LiveIndex(index_dir).retriever):
            assert retriever.version == "000002+4"
            assert retriever.num_items == 200
            place = retriever.catalogue.find([20], "item")
            assert place == before.catalogue.find([20], "item"), "the row of the version, no fresh one beside it"
            assert retriever.describe([20]) == before.describe([20]), "what changed comes with the next data"
            expected = {item: score for item, score in scores(before, 50).items() if item != 30}
            found = scores(retriever, 50)
            assert found.keys() == {1, *expected}
            assert all(found[item] == pytest.approx(expected[item], abs=1e-6) for item in expected)
            # Nothing was trained of item 1: its features say all, and those that came last count.
            embedded = retriever.tower.embed(retriever.tower.features.table([row(1, price=9.9)]))
            for head in retriever.heads:
                np.testing.assert_array_equal(
                    retriever.vectors[head][retriever.catalogue.find([1], "item")], embedded[head]
                )


def scores(retriever: Retriever, trigger: int) -> dict[int, float]:
    return {int(answer.item): answer.score for answer in retriever.retrieve(Query([trigger], k=300, k_ann=400))[0]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(1)], "item 1 comes more than once"),
        ([row(1), row(20)], "item 20 is in the index already; remove it first"),
        ([{"item_id": 1, "brand": 100}], "item 1: tags, price, age is missing"),
        ([{**row(1), "item_id": "x"}], "item_id is 'x', expected a 64-bit integer"),
    ],
)
def test_rows_that_do_not_fit_change_nothing(index_dir: Path, rows: list[dict[str, Any]], message: str) -> None:
    live = LiveIndex(index_dir)
    with pytest.raises(ValueError, match=message):
        live.add(rows)
    assert live.retriever.version == "000001"
    assert last_change(index_dir) == 0


def test_an_addition_may_be_repeated(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    live.add([row(1, text="new", price=None), row(2)])
    assert live.add([row(1, text="new", price=None)]) == [1]
    assert live.add([row(3), row(2)]) == [3, 2], "what is missing of a request is added"
    live.remove([20])
    live.add([row(20)])
    assert live.add([row(20)]) == [20]
    assert live.retriever.num_items == 203
    assert last_change(index_dir) == 4
    merge_segments(index_dir, 4)
    assert LiveIndex(index_dir).add([row(1, text="new", price=None), row(2), row(3), row(20)]) == [1, 2, 3, 20]
    for changed in (row(1, text="new", price=0.5), row(1, text="other"), row(30)):
        with pytest.raises(ValueError, match="is in the index already; remove it first"):
            live.add([row(4), changed])
    assert last_change(index_dir) == 4


def test_a_change_that_waited_too_long_does_not_take_place(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    with ThreadPoolExecutor(2) as threads:
        with writing(index_dir):  # another process publishes
            deadline = time.monotonic() + 0.05
            late: list[Future[Any]] = [
                threads.submit(live.add, [row(1)], deadline=deadline),
                threads.submit(live.remove, [20], deadline=deadline),
            ]
            time.sleep(0.1)
        for job in late:
            with pytest.raises(TimeoutError, match="nothing was changed"):
                job.result(timeout=60)
    assert last_change(index_dir) == 0
    live.add([row(1)], deadline=time.monotonic() + 60)
    assert live.retriever.version == "000001+1"


def test_items_come_and_go_while_a_new_version_is_opened(index_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveIndex(index_dir)
    publish(copy_version(index_dir))
    opened, go_on = threading.Event(), threading.Event()
    really_open = live_index._open

    def slowly_open(*arguments: Any) -> Any:
        state = really_open(*arguments)
        opened.set()
        assert go_on.wait(60)
        return state

    monkeypatch.setattr(live_index, "_open", slowly_open)
    with ThreadPoolExecutor(2) as threads:
        refreshed = threads.submit(live.refresh)
        assert opened.wait(60)
        try:
            added = threads.submit(live.add, [row(1)])
            assert added.result(timeout=60) == [1]
            live.remove([20])
            assert live.retriever.version == "000001+2"
        finally:
            go_on.set()
        assert refreshed.result(timeout=60)
    assert live.retriever.version == "000002+2"
    assert 1 in answers(live.retriever, 30)
    assert 20 not in answers(live.retriever, 30)


def test_an_index_without_versions_takes_no_changes(index_dir: Path) -> None:
    version = current_version(index_dir)
    live = LiveIndex(version)
    with pytest.raises(ValueError, match="one index without versions, so changes have no place"):
        live.add([row(1)])
    with pytest.raises(ValueError, match="one index without versions"):
        live.remove([20])
    assert not live.refresh()
    assert sorted(path.name for path in version.iterdir() if path.name.startswith((".", "segments"))) == []


def test_another_process_and_a_new_version_are_seen_by_refresh(index_dir: Path, built: Config) -> None:
    live, other = LiveIndex(index_dir), LiveIndex(index_dir)
    assert not live.refresh()
    other.add([row(1)])
    other.remove([20])
    assert live.refresh()
    assert live.retriever.version == "000001+2"
    live.add([row(2)])
    with pytest.raises(ValueError, match="item 2 is in the index already"):
        other.add([row(2, text="another")])
    # A version built of data that know item 1 already, and still list item 20.
    version = copy_version(index_dir)
    publish(version)
    assert live.refresh()
    assert live.retriever.version == "000002+3"
    assert {1, 2} <= set(answers(live.retriever, 30))
    assert 20 not in answers(live.retriever, 30)
    rollback(index_dir)
    assert live.refresh()
    assert live.retriever.version == "000001+3"


def copy_version(index_dir: Path) -> Path:
    version = new_version(index_dir)
    for file in current_version(index_dir).rglob("*"):
        if file.is_file():
            target = version / file.relative_to(current_version(index_dir))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return version


@pytest.mark.parametrize("damage", ["version", "segment"])
def test_what_is_damaged_is_refused_and_the_old_stays(index_dir: Path, damage: str) -> None:
    live = LiveIndex(index_dir)
    LiveIndex(index_dir).add([row(1)])
    if damage == "version":
        version = publish(copy_version(index_dir))
        file = next(version.glob("*.lists"))
    else:
        file = index_dir / "segments" / "000001" / "items.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="altered since"):
        live.refresh()
    assert live.retriever.version == "000001"
    assert len(answers(live.retriever, 30)) == 199
    with pytest.raises(ValueError, match="altered since"):
        LiveIndex(index_dir)


def test_segments_merge_into_one_with_the_same_effect(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    live.add([row(1), row(2)])
    live.remove([1, 20])
    live.add([row(20, text="again"), row(3)])
    live.remove([3])
    live.add([row(4)])
    expected = answers(live.retriever, 30)
    merge_segments(index_dir, through=4)
    assert sorted(path.name for path in (index_dir / "segments").iterdir()) == ["000001-000004", "000005"]
    again = LiveIndex(index_dir).retriever
    assert sorted(answers(again, 30)) == sorted(expected)
    assert again.version == live.retriever.version == "000001+5"
    assert not live.refresh()
    assert live.add([row(5)]) == [5]
    (index_dir / "segments" / "000005" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="000005"):
        read_segments(index_dir, 0)


def test_unknown_triggers_with_features_are_embedded_on_the_fly(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    retriever = live.retriever
    with pytest.raises(UnknownItemError):
        retriever.retrieve(Query([1]))
    found = retriever.retrieve(Query([1, 30], k=20, features={1: row(1), 30: row(30)}))
    assert found[1] == retriever.retrieve(Query([30], k=20))[0], "what the index knows it answers from its own vectors"
    assert not {1} & {answer.item for answer in found[0]}
    assert {answer.trigger for answer in found[0]} == {1}
    live.add([row(1)])
    assert [answer.item for answer in found[0]] == [
        answer.item for answer in live.retriever.retrieve(Query([1], k=20))[0]
    ]
    by_user = retriever.retrieve_user(Query(history=[1, 30], k=20, features={"1": row(1)}))
    assert {answer.trigger for answer in by_user} <= {1, 30}
    assert retriever.catalogue.find([1], "item")[0] == -1
    with pytest.raises(ValueError, match="item 1: price is missing"):
        retriever.retrieve(Query([1], features={1: {"brand": 100, "tags": [], "age": None}}))


def test_requests_go_on_while_items_come_and_go(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    done = threading.Event()

    def ask() -> int:
        count = 0
        while not done.is_set():
            retriever = live.retriever
            items = answers(retriever, 30)
            assert len(items) == len(set(items)) == retriever.num_items - 1
            assert -1 not in items
            count += 1
        return count

    def change(start: int) -> None:
        for item in range(start, start + 6):
            live.add([row(item)])
            live.remove([item])
            live.add([row(item)])

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        for changing in [threads.submit(change, start) for start in (1, 101)]:
            changing.result()
        done.set()
        assert all(job.result() > 0 for job in asking)
    assert live.retriever.num_items == 212
    assert last_change(index_dir) == 36
    assert sorted(answers(LiveIndex(index_dir).retriever, 30)) == sorted(answers(live.retriever, 30))


def served_from(built: Config, index_dir: Path) -> Config:
    """The recipe over this index, which moves to where the recipe has it."""
    config = built.model_copy(update={"paths": built.paths.model_copy(update={"root": index_dir.parent})})
    config.model_dir("index").parent.mkdir()
    index_dir.rename(config.model_dir("index"))
    return config


def test_compaction_builds_a_version_of_what_may_be_answered(built: Config, index_dir: Path) -> None:
    config = served_from(built, index_dir)
    renamed = config.model_dir("index")
    assert compact(config).name == "000001", "nothing to compact"
    live = LiveIndex(renamed)
    live.add([row(1, text="new one"), row(2)])
    live.remove([2, 20])
    expected = live.retriever.retrieve(Query([30, 1], k=150))
    cheap = Filters(where={"price": {"max": 0.31}, "tags": row(1)["tags"]})
    cheap_before = answers(live.retriever, 30, filters=cheap)
    assert 1 in cheap_before, "an added item has the features of its row"
    assert len(cheap_before) > 5
    version = compact(config)
    assert version == current_version(renamed)
    summary = open_artifact(version, "index").summary
    assert (summary["num_items"], summary["segments_through"]) == (202, 2), "two of them removed"
    assert sorted(path.name for path in (renamed / "segments").iterdir()) == ["000001-000002"]
    compacted = Retriever.load(version)
    for before, after in zip(expected, compacted.retrieve(Query([30, 1], k=150)), strict=True):
        np.testing.assert_allclose([answer.score for answer in before], [answer.score for answer in after], atol=1e-5)
        assert {answer.item for answer in before} == {answer.item for answer in after}
    assert sorted(answers(compacted, 30, filters=cheap)) == sorted(cheap_before)
    assert live.refresh()
    assert (live.retriever.version, live.retriever.num_items) == ("000002", 200)
    assert live.retriever.describe([1])[0].text == "new one"
    live.add([row(3)])
    assert live.retriever.version == "000002+3"
    # Neither a version of before nor one that is built of old data loses what was added and removed.
    rollback(renamed)
    assert live.refresh()
    assert live.retriever.version == "000001+3"
    assert {1, 3} <= set(answers(live.retriever, 30))
    assert not {2, 20} & set(answers(live.retriever, 30))


def test_removed_items_stay_triggers_and_come_back_alike_before_and_after_compaction(
    built: Config, index_dir: Path
) -> None:
    config = served_from(built, index_dir)
    live = LiveIndex(config.model_dir("index"))
    as_built = scores(live.retriever, 50)
    live.add([row(1), row(2)])
    live.remove([1, 2, 20, 30])
    live.add([row(2, price=9.9)])  # its first row is of no use any more
    live.add([row(30)])

    def state(retriever: Retriever) -> dict[str, Any]:
        gone = [1, 20]
        assert not {*gone} & set(answers(retriever, 50))
        assert not {*gone} & {found.item for found in retriever.retrieve_user(Query(history=[50, 1], k=300, k_ann=400))}
        assert (retriever.catalogue.find_answerable(gone, "item") == -1).all()
        assert retriever.num_items == len(retriever.catalogue.answers(["item_id"])) == 200
        with pytest.raises(UnknownItemError, match="unknown item 20"):
            live.remove([20])
        with pytest.raises(UnknownItemError, match="unknown trigger 3"):
            answers(retriever, 3)
        mixed = Query(history=[1, 20, 3])
        assert retriever.unknown(mixed) == [3]
        assert retriever.retrieve_user(mixed)
        return {item: scores(retriever, item) for item in (1, 2, 20, 30, 50)}

    before = state(live.retriever)
    for compacted in ("000002", "000003"):
        if compacted == "000003":
            live.remove([40])
            live.add([row(40)])  # something to compact
        assert compact(config).name == compacted
        assert live.refresh()
        assert live.retriever.version == compacted
        after = state(live.retriever)
        assert len(live.retriever.catalogue) == 202
        for trigger, expected in before.items():
            assert after[trigger] == pytest.approx(expected, abs=1e-5), trigger
    live.add([row(20, price=9.9), row(1, price=9.9)])
    found = scores(live.retriever, 50)
    assert found[20] == pytest.approx(as_built[20], abs=1e-5), "what training made of it, not what its features say"
    assert live.retriever.tower is not None
    embedded = live.retriever.tower.embed(live.retriever.tower.features.table([row(1, price=9.9)]))
    for head in live.retriever.heads:
        place = live.retriever.catalogue.find([1], "item")
        np.testing.assert_array_equal(live.retriever.vectors[head][place], embedded[head])


def test_after_its_changes_are_lost_an_index_answers_but_takes_no_others(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    live.add([row(1)])
    live.add([row(2)])
    kept = index_dir / "kept"
    (index_dir / "segments").rename(kept)
    for change in (lambda: live.add([row(3)]), lambda: live.remove([20])):
        with pytest.raises(ChangesLostError, match="holds changes up to 0, and change 2 is in use"):
            change()
    assert not (index_dir / "segments").exists()
    assert {1, 2} <= set(answers(live.retriever, 30))
    kept.rename(index_dir / "segments")
    live.add([row(3)])
    assert last_change(index_dir) == 3


def test_a_change_in_the_place_of_another_is_noticed(index_dir: Path) -> None:
    live = LiveIndex(index_dir)
    segments = index_dir / "segments"
    for item in range(1, 5):
        live.add([row(item)])
    whole = [list(segment.added.column("item_id").to_pylist()) for segment in read_segments(index_dir, 0)]
    assert whole == [[1], [2], [3], [4]]
    (segments / "000002").rename(segments / "aside")
    (segments / "000003").rename(segments / "000002")
    (segments / "aside").rename(segments / "000003")
    with pytest.raises(ValueError, match="000002: was written after another change"):
        read_segments(index_dir, 0)
    (segments / "000002").rename(segments / "aside")
    (segments / "000003").rename(segments / "000002")
    (segments / "aside").rename(segments / "000003")
    with writing(index_dir):
        merge_segments(index_dir, 2)
    live.add([row(5)])
    merged = read_segments(index_dir, 0)
    assert [(segment.first, segment.last) for segment in merged] == [(1, 2), (3, 3), (4, 4), (5, 5)]
    with writing(index_dir):
        merge_segments(index_dir, 5)
    live.add([row(6)])
    assert [(segment.first, segment.last) for segment in read_segments(index_dir, 0)] == [(1, 5), (6, 6)]


def test_the_teacher_embeds_added_items_that_bring_no_embedding(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, model={"content_dim": 4}, training={"max_steps": 2}, index={"min_recall": 0.1})
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_version(config)
    live = LiveIndex(config.model_dir("index"))
    tower = live.retriever.tower
    assert tower is not None
    width = tower.features.facts.content_dim
    known = {"red": np.eye(width)[0], "blue": np.eye(width)[1]}

    def embed(columns: dict[str, pa.Array]) -> np.ndarray:
        found = zip(columns["text"].to_pylist(), columns["image"].to_pylist(), strict=True)
        return np.stack([known.get(image or text or "", np.zeros(width)) for text, image in found]).astype(np.float32)

    teacher = FreshContent(embed, width, ("text", "image"))
    own = known["red"].tolist()
    rows = [row(9001, text="red"), row(9002, text="red", image="blue"), row(9003, text="?")]
    live.add([*rows, row(9004, text="blue", content_embedding=own)], content=teacher)
    segment = read_segments(config.model_dir("index"), 0)[-1].added
    assert segment.column("content_embedding").to_pylist() == [own, known["blue"].tolist(), None, own]
    assert live.add(rows, content=teacher) == [9001, 9002, 9003], "an addition may be repeated"
    with pytest.raises(RequestError, match=r"9007.*text"):
        live.add([row(9007, text=3)], content=teacher)
    with pytest.raises(ValueError, match="teacher makes content embeddings of width 3, the published index takes"):
        live.add([row(9005, text="red")], content=FreshContent(embed, 3, ("text",)))
    with pytest.raises(RequestError, match="picture is no field of an item"):
        live.add([row(9006, picture="blue")])
    assert [found.image for found in live.retriever.describe([9001, 9002])] == ["", "blue"]
