"""The Python interface: ``fit`` two tables, ask the `Model` for items, evaluate, save and load it."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mtmh.chain.stages import Say
from mtmh.config import Config, load_config
from mtmh.data.arrays import ItemId
from mtmh.evaluation.results import REPORT, Evaluation, load_evaluation
from mtmh.evaluation.verdict import verdict
from mtmh.live.live_index import LiveIndex
from mtmh.retrieval.answers import RetrievedItem
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.start.guess import Roles, guess_recipe
from mtmh.start.recipe import recipe_text
from mtmh.start.run import run_stages
from mtmh.start.tables import Table, as_path

RECIPE = "recipe.yaml"

_TABLES = "tables"  # folder of tables that were in memory


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation; as text, the verdict in words.

    Attributes:
        evaluation: all figures.
        page: ``report.html``.
    """

    evaluation: Evaluation
    page: Path

    def __str__(self) -> str:
        return "\n".join([*verdict(self.evaluation), *self.evaluation.notes])


class Model:
    """A fitted model: a folder with a recipe and the artifacts of its stages, which all verbs of ``mtmh`` take too.

    Args:
        folder: holds ``recipe.yaml`` and the artifacts.
        temporary: whether the folder goes with the model.

    Attributes:
        folder: as given.
        config: the recipe.

    Raises:
        ValueError: no recipe there, or one that does not fit.
    """

    def __init__(self, folder: Path, *, temporary: bool = False) -> None:
        self.folder = folder
        if temporary:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # Where the folder lies now, not where it was when the recipe was written.
        self.config: Config = load_config(folder / RECIPE, [f"paths.root={folder}"])

    @cached_property
    def retriever(self) -> Retriever:
        """The retriever that answers; see `Retriever` for filters, shares of heads, exact search and more."""
        return LiveIndex(self.config.model_dir("index"), self.config.retrieval, self.config.index.milvus).retriever

    def similar_items(self, item: ItemId, k: int = 10, alpha: float | None = None) -> list[RetrievedItem]:
        """Items that go with an item.

        Args:
            item: its id.
            k: how many.
            alpha: percent of the answers from the engagement head, the others being from the relevance head; None: as
                the recipe says, 50 unless it was set.

        Returns:
            ``k`` answers, or all there are, those of the engagement head first.

        Raises:
            UnknownItemError: there is no such item; a `ValueError`.
        """
        return self.retriever.retrieve(Query([item], k=k, alpha=alpha))[0]

    def recommend(self, history: Sequence[ItemId], k: int = 10, alpha: float | None = None) -> list[RetrievedItem]:
        """Items for a user, by what the user engaged with.

        Args:
            history: ids, the latest last; unknown ones are passed over.
            k: how many.
            alpha: as in `similar_items`; None: the best of all that is known of the user, whatever brought it, unless
                ``retrieval.user_share`` says otherwise.

        Returns:
            ``k`` answers, best first; none is of the history.

        Raises:
            UnknownItemError: nothing of the history is known; a `ValueError`.
        """
        return self.retriever.retrieve_user(Query(history=history, k=k, alpha=alpha))

    def evaluate(self, say: Say | None = None) -> Report:
        """Measures the model on the test period that training has not seen, beside yardsticks; once, then reads it.

        Args:
            say: takes a line about each stage; None: nobody is told.

        Raises:
            ValueError: artifacts do not fit together.
        """
        found = run_stages(self.config, say or _silent)["evaluate"].path
        return Report(load_evaluation(found), found / REPORT)

    def serve(self, host: str | None = None, port: int | None = None) -> None:
        """Answers over HTTP, with the explorer at ``/``, until it is interrupted; what ``mtmh serve`` does.

        Not in a notebook, whose event loop runs already: there, ``mtmh serve`` with the recipe of the folder.

        Args:
            host: address to listen on; None: as the recipe says, this machine only unless it was set.
            port: 0: a free one; None: as the recipe says, 8080 unless it was set.

        Raises:
            ValueError: the address is taken or cannot be bound.
        """
        from mtmh.serving.server import serve  # with the extra ``serve``, which the other methods do without

        given = {"paths.root": self.folder, "service.host": host, "service.port": port}
        serve(
            load_config(self.folder / RECIPE, [f"{key}={value}" for key, value in given.items() if value is not None])
        )

    def save(self, folder: str | Path) -> Path:
        """Copies recipe and artifacts to a folder that `load` and every verb of ``mtmh`` can open.

        Returns:
            The folder.

        Raises:
            ValueError: something is there already.
        """
        target = Path(folder).absolute()
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"{target}: not empty; expected a new folder")
        shutil.copytree(self.folder, target, dirs_exist_ok=True)
        # Its first line that names the root tells the verbs where the artifacts are now.
        recipe = target / RECIPE
        recipe.write_text(recipe.read_text().replace(str(self.folder), str(target)))
        return target


def fit(
    events: Table,
    items: Table | None = None,
    *,
    columns: Roles | None = None,
    folder: str | Path | None = None,
    teacher: str | None = "auto",
    settings: Mapping[str, Any] | None = None,
    say: Say = print,
) -> Model:
    """Trains a model on two tables: guesses a recipe, then runs its stages up to the published index.

    Args:
        events: one row an engagement: user, item, time; a frame (pandas, Polars, Arrow), or the path of Parquet or CSV
            files.
        items: one row an item: its id, text, topics, features; None: the items are those of the events.
        columns: what a column is for -> its name, as ``{"user_id": "customer", "text": ["title"]}``; what is left out
            is guessed (`guess_recipe`).
        folder: of recipe and artifacts; a second ``fit`` there does again only what has changed. None: a temporary
            one, which goes with the model unless it is saved.
        teacher: ``auto``, a model as ``content.model`` of a recipe, or None.
        settings: of the recipe, by dotted key: ``{"training.max_steps": 200}``.
        say: takes a line about each assumption and stage.

    Raises:
        ValueError: tables, columns or settings do not fit; the message says which and what was expected.

    Example:
        >>> import mtmh
        >>> model = mtmh.fit("events.parquet", "items.parquet")  # doctest: +SKIP
        >>> [answer.item for answer in model.similar_items("SKU-1", k=10, alpha=50)]  # doctest: +SKIP
    """
    root = Path(mkdtemp(prefix="mtmh-") if folder is None else folder).absolute()
    events_path = as_path(events, "events", root / _TABLES)
    items_path = as_path(items, "items", root / _TABLES) if items is not None else None
    guess = guess_recipe(events_path, items_path, columns, teacher)
    for label, text in guess.assumed:
        say(f"{label}: {text}")
    root.mkdir(parents=True, exist_ok=True)
    (root / RECIPE).write_text(recipe_text(guess, str(root), "Fitted in Python.", settings))
    model = Model(root, temporary=folder is None)
    run_stages(model.config, say, until="build_index")
    return model


def load(folder: str | Path) -> Model:
    """Opens a model that `fit` or `Model.save` has written.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder).absolute()
    if not (path / RECIPE).is_file():
        raise ValueError(f"{path}: no {RECIPE} here; expected a folder that Model.save or mtmh.fit has written")
    return Model(path)


def _silent(line: str) -> None:
    """Says nothing."""
