"""Alpha from feedback over simulated requests: what it earns beside every fixed alpha, and how right the estimates are.

    python -m benchmarks.adaptive_alpha
    python -m benchmarks.adaptive_alpha --gain 0.0 --requests 50000 --json build/adaptive-alpha.json

A request has the features of ``mtmh/adaptive/features.py``. Of 20 items shown a user engages with each by a probability
that is highest at an alpha of the request's own: popular triggers whose heads disagree want the engagement head,
others the relevance head. ``gain`` is how much more that alpha earns than one 30 points away; at 0 all alphas earn the
same and there is nothing to learn. Choices, feedback and log are the service's own, the log in a temporary folder; the
feedback comes after 50 further requests.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.adaptive.chooser import AlphaChooser
from mtmh.config import AdaptiveAlphaConfig

Floats = npt.NDArray[np.float64]

_SHOWN = 20
_BASE = 0.08  # probability that an item shown is engaged with, at the best alpha
_DELAY = 50


def main() -> None:
    """Parses the command line, simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--gain", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [simulate(gain, arguments.requests, seed) for gain in arguments.gain for seed in arguments.seeds]
    print(
        "| gain | seed | regret | of the best fixed alpha | of even draws | last tenth | IPS, SNIPS, DR: mean error in"
        " standard errors | us a request |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        errors = ", ".join(f"{row['errors'][name]:.2f}" for name in ("ips", "snips", "dr"))
        cells = [f"{100 * row[name]:.1f} %" for name in ("regret", "regret_fixed", "regret_even", "regret_last")]
        print(f"| {row['gain']:g} | {row['seed']} | {' | '.join(cells)} | {errors} | {row['microseconds']:.0f} |")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2))


def simulate(gain: float, requests: int, seed: int) -> dict[str, Any]:
    """One run of the service's chooser; regret is that of the mean reward against the best alpha of each request."""
    rng = np.random.default_rng(seed)
    settings = AdaptiveAlphaConfig()
    features = draw_features(rng, requests)
    rates = engagement_rates(features, np.array(settings.alphas), gain)
    arms = np.empty(requests, np.int64)
    place = {alpha: arm for arm, alpha in enumerate(settings.alphas)}
    waiting: deque[int] = deque()
    with tempfile.TemporaryDirectory() as folder:
        chooser = AlphaChooser(settings, Path(folder) / "feedback.sqlite", seed=seed)
        started = time.perf_counter()
        for request in range(requests):
            arms[request] = place[chooser.draw(str(request), features[request])]
            waiting.append(request)
            if len(waiting) > _DELAY:
                told = waiting.popleft()
                draws = np.random.default_rng((seed, told)).random(_SHOWN)
                chooser.feed(str(told), float((draws < rates[told, arms[told]]).mean()))
            if request % 1000 == 999:
                chooser.save()
        seconds = time.perf_counter() - started
        learned = chooser.summary()
        chooser.close()
    earned = rates[np.arange(requests), arms]
    best = rates.max(axis=1)
    counted = requests - _DELAY
    errors = {
        name: float(
            np.mean(
                [
                    abs(values[name].value - rates[:counted, arm].mean()) / max(values[name].standard_error, 1e-12)
                    for arm, values in enumerate(learned.values)
                ]
            )
        )
        for name in ("ips", "snips", "dr")
    }
    last = slice(9 * requests // 10, None)
    return {
        "gain": gain,
        "seed": seed,
        "requests": requests,
        "regret": float(1 - earned.mean() / best.mean()),
        "regret_fixed": float(1 - rates.mean(axis=0).max() / best.mean()),
        "regret_even": float(1 - rates.mean() / best.mean()),
        "regret_last": float(1 - earned[last].mean() / best[last].mean()),
        "errors": errors,
        "microseconds": 1e6 * seconds / requests,
    }


def draw_features(rng: np.random.Generator, count: int) -> Floats:
    """[N, F] features: constant, popularity, agreement, length, spread."""
    length = rng.choice([0.0, 0.4, 0.8], count, p=[0.5, 0.3, 0.2])
    return np.stack(
        [
            np.ones(count),
            rng.beta(2.0, 2.0, count),
            rng.uniform(-0.1, 0.9, count),
            length,
            np.where(length > 0, rng.uniform(0.1, 0.8, count), 0.0),
        ],
        axis=1,
    )


def engagement_rates(features: Floats, alphas: Floats, gain: float) -> Floats:
    """[N, A] probabilities that an item shown is engaged with."""
    wanted = 50.0 + 60.0 * (features[:, 1] - 0.5) - 30.0 * (features[:, 2] - 0.4)
    away = (alphas[None, :] - wanted[:, None]) / 30.0
    level = _BASE * (0.6 + 0.8 * features[:, 1])  # requests also differ in what any alpha earns
    return np.asarray(level[:, None] * np.clip(1.0 - gain * away**2, 0.05, None))


if __name__ == "__main__":
    main()
