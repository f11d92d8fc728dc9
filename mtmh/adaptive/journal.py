"""The log of choices and rewards, a SQLite file: what a policy knows is what it holds, so a restart loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SCHEMA = """
CREATE TABLE IF NOT EXISTS choice (
    request_id TEXT PRIMARY KEY, at REAL NOT NULL, features BLOB NOT NULL, alpha REAL NOT NULL,
    propensity REAL NOT NULL, reward REAL, place INTEGER);
CREATE INDEX IF NOT EXISTS by_place ON choice (place);
CREATE TABLE IF NOT EXISTS about (features TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Choice:
    """An alpha that a request was answered with.

    Attributes:
        at: time of the request, seconds since 1970.
        features: [F].
        alpha: percent.
        propensity: probability that it had.
    """

    at: float
    features: npt.NDArray[np.float64]
    alpha: float
    propensity: float


class Journal:
    """Opens or makes the file; one process at a time has it.

    Args:
        path: of the file.
        features: names of the numbers that choices go by.

    Raises:
        ValueError: another process has the file, or it is none of ours, or of other features.
    """

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, timeout=0.0, check_same_thread=False)
        try:
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.executescript(_SCHEMA)
            stored = self._file.execute("SELECT features FROM about").fetchone()
            names = ",".join(features)
            if stored is None:
                with self._file:
                    self._file.execute("INSERT INTO about VALUES (?)", (names,))
        except sqlite3.Error as error:
            self._file.close()
            raise ValueError(
                f"{path}: {error}; expected the log of feedback of this service alone"
                " (service.adaptive_alpha.file names another)"
            ) from None
        if stored is not None and stored[0] != names:
            self._file.close()
            raise ValueError(
                f"{path}: choices by {stored[0]}, not by {names}: move the file away, learning begins anew"
            )

    def waiting(self, since: float) -> dict[str, Choice]:
        """Choices from a time on that have no reward yet, by request; older ones are forgotten."""
        with self._file:
            self._file.execute("DELETE FROM choice WHERE reward IS NULL AND at < ?", (since,))
        found = self._file.execute(
            "SELECT request_id, at, features, alpha, propensity FROM choice WHERE reward IS NULL ORDER BY at"
        )
        return {
            request_id: Choice(at, np.frombuffer(features), alpha, propensity)
            for request_id, at, features, alpha, propensity in found
        }

    def rewarded(self, most: int) -> list[tuple[str, Choice, float]]:
        """The newest choices with a reward, at most so many, the oldest reward first."""
        found = self._file.execute(
            "SELECT request_id, at, features, alpha, propensity, reward FROM choice WHERE place IS NOT NULL"
            " ORDER BY place DESC LIMIT ?",
            (most,),
        ).fetchall()
        return [
            (request_id, Choice(at, np.frombuffer(features), alpha, propensity), reward)
            for request_id, at, features, alpha, propensity, reward in reversed(found)
        ]

    def save(self, choices: Mapping[str, Choice], rewards: Iterable[tuple[str, float]], gone: Iterable[str]) -> None:
        """Writes what is new, at once.

        Args:
            choices: without a reward, by request; an id that is there already is replaced.
            rewards: request and reward, in their order.
            gone: requests that are forgotten.
        """
        with self._file:
            self._file.executemany(
                "INSERT OR REPLACE INTO choice VALUES (?, ?, ?, ?, ?, NULL, NULL)",
                (
                    (request_id, choice.at, choice.features.tobytes(), choice.alpha, choice.propensity)
                    for request_id, choice in choices.items()
                ),
            )
            (place,) = self._file.execute("SELECT coalesce(max(place), 0) FROM choice").fetchone()
            self._file.executemany(
                "UPDATE choice SET reward = ?, place = ? WHERE request_id = ?",
                ((reward, place + 1 + row, request_id) for row, (request_id, reward) in enumerate(rewards)),
            )
            self._file.executemany("DELETE FROM choice WHERE request_id = ?", ((request_id,) for request_id in gone))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
