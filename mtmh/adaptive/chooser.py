"""Chooses alphas, remembers the choices, and learns from the feedback on them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtmh.adaptive.features import FEATURES, RequestFeatures
from mtmh.adaptive.journal import Choice, Journal
from mtmh.adaptive.off_policy import Estimator, Logged, OffPolicyValue, values_of_alphas
from mtmh.adaptive.policy import AlphaPolicy
from mtmh.config import AdaptiveAlphaConfig
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

_MOST_PENDING = 200_000  # choices that wait for feedback; the oldest leave first


class UnknownRequestError(ValueError):
    """Feedback on a request whose alpha was not chosen here, or too long ago."""


@dataclass(frozen=True)
class AlphaSummary:
    """All that was learned.

    Attributes:
        num_feedback: rewards that count.
        reward: mean of them; None: there are none.
        alphas: percent.
        chosen: how often each was chosen since the start.
        values: of each, what it would earn as the alpha of every request; empty without feedback.
    """

    num_feedback: int
    reward: float | None
    alphas: list[float]
    chosen: list[int]
    values: list[dict[Estimator, OffPolicyValue]]


class AlphaChooser:
    """Draws an alpha a request by Thompson sampling, and moves its policy with every feedback. Safe for threads.

    Args:
        settings: alphas, exploration and memory.
        file: of the log; what it holds was learned already.
        seed: of the draws; None: another one each time.

    Raises:
        ValueError: the log cannot be used.
    """

    def __init__(self, settings: AdaptiveAlphaConfig, file: Path, seed: int | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # apart: a slow disk holds up no choice
        self._journal = Journal(file, FEATURES)
        self._arms = {alpha: arm for arm, alpha in enumerate(settings.alphas)}
        seed = int(np.random.default_rng(seed).integers(2**31))
        self._policy = AlphaPolicy(settings.alphas, len(FEATURES), settings.explore, seed)
        self._features: tuple[object, RequestFeatures] | None = None
        self._chosen: Counter[int] = Counter()
        self._unsaved: dict[str, Choice] = {}
        self._unsaved_rewards: list[tuple[str, float]] = []
        self._gone: list[str] = []
        self._pending = OrderedDict(self._journal.waiting(time.time() - self._expires))
        # Rewards that count, oldest first; those of alphas that are no choice any more do not.
        kept = [row for row in self._journal.rewarded(settings.memory) if row[1].alpha in self._arms]
        self._rewarded = deque(kept)
        self._rewards = OrderedDict.fromkeys(request_id for request_id, _, _ in kept)
        if kept:
            self._learn(kept, 1)
        self._summary: tuple[int, AlphaSummary] | None = None
        self._changes = 0

    @property
    def _expires(self) -> float:
        return 60.0 * self._settings.expire_minutes

    def choose(self, request_id: str, retriever: Retriever, query: Query) -> float:
        """The alpha of a request.

        Args:
            request_id: by which feedback names it.
            retriever: that answers it.
            query: with triggers or a history.

        Raises:
            RequestError: ids that are no ids of this catalogue.
        """
        base = retriever.vectors[retriever.heads[0]].base
        features = self._features  # another thread may answer from another version meanwhile
        if features is None or features[0] is not base:
            vectors = {head: retriever.vectors[head] for head in retriever.heads}
            popularity = retriever.catalogue.popularity(np.arange(len(base)))
            self._features = features = base, RequestFeatures(vectors, popularity)
        role = ("trigger", "triggers") if query.history is None else ("item of the history", "history")
        return self.draw(request_id, features[1].of(retriever.catalogue.find(query.ids, *role)))

    def draw(self, request_id: str, features: npt.NDArray[np.float64]) -> float:
        """The alpha of a request with these features [F]."""
        with self._lock:
            arm, propensity = self._policy.choose(features)
            choice = Choice(time.time(), features, self._settings.alphas[arm], propensity)
            self._chosen[arm] += 1
            self._changes += 1
            if request_id in self._rewards:  # of a client that uses an id again: feedback on it was given
                return choice.alpha
            self._pending[request_id] = self._unsaved[request_id] = choice
            self._pending.move_to_end(request_id)
            while len(self._pending) > _MOST_PENDING or self._oldest_is_gone(choice.at):
                left, _ = self._pending.popitem(last=False)
                self._forget(left)
        return choice.alpha

    def feed(self, request_id: str, reward: float) -> bool:
        """Learns what a request earned; False: that was told before, and nothing changes.

        Args:
            request_id: of the answer.
            reward: 0 .. 1.

        Raises:
            UnknownRequestError: no alpha was chosen for it, or too long ago.
        """
        with self._lock:
            if request_id in self._rewards:
                return False
            choice = self._pending.pop(request_id, None)
            if choice is None or choice.alpha not in self._arms:
                raise UnknownRequestError(
                    f"no alpha was chosen for request {request_id}, or more than"
                    f" {self._settings.expire_minutes:g} minutes ago"
                )
            row = (request_id, choice, reward)
            self._learn([row], 1)
            self._rewarded.append(row)
            self._rewards[request_id] = None
            self._unsaved_rewards.append((request_id, reward))
            if len(self._rewarded) > self._settings.memory:
                oldest = self._rewarded.popleft()
                self._learn([oldest], -1)
                del self._rewards[oldest[0]]
                self._forget(oldest[0])
            self._changes += 1
        return True

    def save(self) -> None:
        """Writes what is new to the log; called every few seconds.

        Raises:
            sqlite3.Error: it cannot be written; what is new is kept for the next call.
        """
        with self._writing:
            with self._lock:
                new = self._unsaved, self._unsaved_rewards, self._gone
                self._unsaved, self._unsaved_rewards, self._gone = {}, [], []
            if not any(new):
                return
            try:
                self._journal.save(*new)
            except sqlite3.Error:
                with self._lock:
                    self._unsaved = new[0] | self._unsaved
                    self._unsaved_rewards, self._gone = new[1] + self._unsaved_rewards, new[2] + self._gone
                raise

    def close(self) -> None:
        """Writes what is new and closes the log."""
        self.save()
        with self._writing:
            self._journal.close()

    def summary(self) -> AlphaSummary:
        """All that was learned, with the off-policy value of each alpha; choices and feedback go on meanwhile."""
        alphas = self._settings.alphas
        with self._lock:
            changes = self._changes
            if self._summary is not None and self._summary[0] == changes:
                return self._summary[1]
            chosen = [self._chosen[arm] for arm in range(len(alphas))]
            rewarded, expected = list(self._rewarded), self._policy.expectation()
        if rewarded:
            logged = self._logged(rewarded)
            values = values_of_alphas(logged, len(alphas), expected)
            found = AlphaSummary(len(logged), float(logged.rewards.mean()), alphas, chosen, values)
        else:
            found = AlphaSummary(0, None, alphas, chosen, [])
        with self._lock:
            self._summary = changes, found
        return found

    def _logged(self, rows: Sequence[tuple[str, Choice, float]]) -> Logged:
        choices = [choice for _, choice, _ in rows]
        return Logged(
            np.stack([choice.features for choice in choices]),
            np.array([self._arms[choice.alpha] for choice in choices]),
            np.array([choice.propensity for choice in choices]),
            np.array([reward for _, _, reward in rows]),
        )

    def _learn(self, rows: Sequence[tuple[str, Choice, float]], sign: int) -> None:
        logged = self._logged(rows)
        self._policy.learn(logged.features, logged.arms, logged.rewards, sign)

    def _oldest_is_gone(self, now: float) -> bool:
        return next(iter(self._pending.values())).at < now - self._expires

    def _forget(self, request_id: str) -> None:
        if self._unsaved.pop(request_id, None) is None:
            self._gone.append(request_id)
