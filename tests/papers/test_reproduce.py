"""``mtmh reproduce --quick`` from nothing to the page, on a catalogue of a few hundred items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtmh.config import load_config
from mtmh.data.arrays import Indices
from mtmh.evaluation.results import load_evaluation
from mtmh.papers.figures import measured_rows
from mtmh.papers.mixture import Neighbours
from mtmh.papers.models import CONTENT, DEFAULTS, MIXTURE, MODELS, MTMH, NEEDED, PARTS, Part
from mtmh.papers.reproduce import PAGE, RESULTS, TEXT, _models, _shared, reproduce
from mtmh.papers.runs import Run, Say, plan_runs
from mtmh.retrieval.ranking import Candidates

TINY = [
    "data.options.num_users=150",
    "data.options.num_items=520",
    "data.options.num_events=5000",
    "training.epochs=1",
    "training.max_steps=4",
    "preranker.training.epochs=1",
    "preranker.check_users=20",
    "evaluation.num_users=40",
    "retrieval.k_ann=60",
]


def test_every_part_draws_on_models_that_there_are() -> None:
    assert NEEDED.keys() == set(PARTS)
    assert {name for names in NEEDED.values() for name in names} == MODELS.keys()
    assert len({model.folder for model in MODELS.values()}) == len(MODELS)


def test_models_share_data_users_and_candidates() -> None:
    runs = {run.config.name: run.config for run in plan_runs("synthetic", MODELS.values(), [0, 1], [])}
    assert len(runs) == 2 * len(MODELS)
    first = runs["mtmh-seed0"]
    for name, config in runs.items():
        assert (config.seed, config.dataset_dir, config.evaluation.num_users) == (0, first.dataset_dir, 2000), name
        assert str(config.training.seed) == name[-1]
        if name.startswith("mtmh-defaults"):
            continue
        num_heads = 1 if name.startswith(("hstu", "sasrec", "content")) else len(config.model.heads)
        assert num_heads * config.retrieval.k_ann == 2000, name
        assert (config.retrieval.preranker, config.retrieval.k, config.evaluation.num_triggers) == ("learned", 30, 50)
        assert config.training.optimizer == "adagrad"
        assert (config.loss.propensity is None) == (name.startswith("mtmh-propensity-none"))
        assert config.model_dir("preranker") == first.model_dir("preranker"), name
        inputs = {"hllm": 128, "semantic-task": 64}
        assert config.model.content_dim == next((dim for start, dim in inputs.items() if name.startswith(start)), 0), (
            name
        )
    assert runs["mol-seed0"].model.id_features is None
    assert runs["neucf-seed0"].model.id_features == ["item_id"]


def test_a_teacher_of_text_or_pictures_alone_has_folders_of_its_own() -> None:
    wanted = [MODELS[name] for name in NEEDED["related2"]]
    plain, text, image, both = (run.config for run in plan_runs("demo", wanted, [0], []))
    assert plain.content_dir == both.content_dir
    assert len({config.content_dir for config in (text, image, both)}) == 3
    assert len({config.encoder_dir for config in (text, image, both)}) == 3
    assert text.content.encoder is not None
    assert image.content.encoder is not None
    assert (text.content.encoder.image, image.content.encoder.text) == (None, None)
    assert image.content.encoder.concept is not None  # concepts are texts, whatever the items are read by
    assert (text.content.check.min_auc_l1, both.content.check.min_auc_l1) == (None, 0.9)


def test_models_of_pictures_are_left_out_where_there_are_none() -> None:
    models, lines = _models(["related2"], load_config("synthetic"))
    assert [model.name for model in models] == ["1 to 500", "semantic task, text as input"]
    assert "image as input" in lines[0]
    assert [model.name for model in _models(["related2"], load_config("demo"))[0]] == list(NEEDED["related2"])


@pytest.mark.parametrize(
    ("part", "overrides", "message"),
    [
        ("adaptive", ["model.heads=[{name: engagement}]"], r"The recipe has no teacher. Nothing of adaptive is left"),
        ("table2", ["model.heads=[{name: engagement}]"], r"left out: MTMH, MTSH, STMH. Nothing of table2 is left"),
        ("leave-one-out", [], r"leave-one-out is for recipes that set evaluation.given_events"),
    ],
)
def test_a_part_that_the_data_do_not_allow_is_refused_before_anything_runs(
    part: Part, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        reproduce("synthetic", [part], [0], pytest.fail, overrides=[*overrides, f"paths.root={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_models_left_out_by_wish_are_named_unless_the_others_need_them(tmp_path: Path) -> None:
    models, lines = _models(["table2", "figure7"], load_config("synthetic"), ["STMH", "figure 7, MTMH", "HLLM"])
    assert [model.name for model in models] == [MTMH, "MTSH", "NeuCF", "figure 7, NeuCF"]
    assert lines == ["Left out by wish: STMH; figure 7, MTMH."]
    with pytest.raises(ValueError, match=r"wish: MTMH; NeuCF. content encoder needs the data and the preranker of one"):
        reproduce(
            "synthetic", ["figure1"], [0], pytest.fail, without=[MTMH, "NeuCF"], overrides=[f"paths.root={tmp_path}"]
        )


@pytest.fixture(name="root", scope="module")
def fixture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


def test_a_command_that_is_killed_leaves_a_page_of_the_models_that_are_done(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = Run.do

    def killed(self: Run, say: Say) -> None:
        if self.model.name == "NeuCF":
            raise KeyboardInterrupt
        do(self, say)

    monkeypatch.setattr(Run, "do", killed)
    overrides = [*TINY, f"paths.root={root}"]
    with pytest.raises(KeyboardInterrupt):
        reproduce("synthetic", ["figure1"], [0], lambda _: None, without=[CONTENT], quick=True, overrides=overrides)
    page = root / "papers-quick" / PAGE
    results = json.loads((page.parent / RESULTS).read_text())
    assert results["facts"][-2:] == ["Still missing: NeuCF.", "Left out by wish: content encoder."]
    assert [line[0] for line in results["tables"][0]["lines"] if line[0].endswith("here")] == ["MTMH, here"]
    assert results["claims"] == []
    for text in (page.read_text(), (page.parent / TEXT).read_text()):
        assert "Still missing: NeuCF." in text
        assert "--without" in text


def test_a_page_from_nothing_and_again_without_training(root: Path) -> None:
    said: list[str] = []
    overrides = [*TINY, f"paths.root={root}"]
    page = reproduce("synthetic", ["figure1"], [0], said.append, quick=True, overrides=overrides)
    assert page == root / "papers-quick" / PAGE
    models = ["mtmh-seed0", "neucf-seed0", "content-encoder-seed0"]
    assert list(dict.fromkeys(line.split(":")[0] for line in said)) == models
    results = json.loads((page.parent / RESULTS).read_text())
    assert not results["failed"]
    assert not any("missing" in fact for fact in results["facts"])
    (table,) = results["tables"]
    names = [line[0] for line in table["lines"]]
    assert [name for name in names if name.endswith("here")] == [
        "co-engagement, here", "content encoder, here", "MTMH, here"
    ]  # fmt: skip
    assert "content encoder, paper" in names
    assert len(results["figures"][0]["curves"]) == 3
    assert {claim["text"] for claim in results["claims"]} == {
        "content encoder is above NeuCF in L2 match", "NeuCF is above content encoder in recall@500"
    }  # fmt: skip
    text = (page.parent / TEXT).read_text()
    assert "mtmh reproduce synthetic --quick --only figure1 --seeds 0" in text
    assert "python -m mtmh.papers.vectors content synthetic+paper" in text
    assert page.read_text().count("<svg") == 1

    made = {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    reproduce("synthetic", ["figure1"], [0], said.append, quick=True, overrides=overrides)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")} == made
    assert json.loads((page.parent / RESULTS).read_text())["tables"] == results["tables"]

    # Data without a teacher have no MTMH: the yardsticks beside the recipe's own settings take their place.
    shared = list(_shared("synthetic", quick=True, overrides=overrides))
    (run,) = plan_runs("synthetic", [MODELS[MTMH]], [0], shared)
    of_mtmh, of_defaults = measured_rows({MTMH: [run]}), measured_rows({DEFAULTS: [run]})
    assert {"item-item cosine", "popularity"} < of_defaults.keys() < of_mtmh.keys() | {DEFAULTS}
    assert of_defaults["popularity"].rows == of_mtmh["popularity"].rows


def test_a_mixture_of_logits_answers_with_its_own_neighbours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _shared("synthetic", quick=True, overrides=[*TINY, f"paths.root={root}"])
    first, run = plan_runs("synthetic", [MODELS[MTMH], MODELS[MIXTURE]], [0], list(shared))
    first.do(lambda _: None)  # dataset and preranker; those of the page above, if it was made
    asked: list[int] = []
    search = Neighbours.search

    def counted(self: Neighbours, head: str, triggers: Indices, k_ann: int) -> Candidates:
        asked.append(k_ann)
        return search(self, head, triggers, k_ann)

    monkeypatch.setattr(Neighbours, "search", counted)
    run.do(lambda _: None)
    assert max(asked) == 120  # as many as two heads have; by similarity alone fewer will do
    evaluation = load_evaluation(run.evaluation)
    assert (evaluation.preranker, evaluation.examples) == ("learned", [])
    asked.clear()
    run.do(lambda _: None)
    assert not asked


def test_a_run_that_fails_is_named_with_its_reason(root: Path) -> None:
    with pytest.raises(ValueError, match=r"mtmh-seed0: .*no such setting"):
        reproduce(
            "synthetic", ["figure1"], [0], lambda _: None, overrides=["data.options.wrong=1", f"paths.root={root}"]
        )
