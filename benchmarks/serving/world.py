"""A recipe with a trained model and a published index over a simulated catalogue, made once and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RECIPE = """
extends: synthetic
name: served
paths: {{root: {root}}}
data:
  options: {{num_items: {num_items}, num_users: {num_users}, num_events: {num_events}}}
training: {{max_steps: {steps}, checkpoint_every: {steps}}}
preranker: {{training: {{max_steps: {steps}, checkpoint_every: {steps}}}}}
index: {{min_recall: 0}}
"""


def make_world(folder: Path, num_items: int, *, versions: int = 1, steps: int = 100) -> Path:
    """Makes a catalogue, briefly trained models and ``versions`` index versions; returns the recipe's file."""
    root = folder / f"served-{num_items}"
    root.mkdir(parents=True, exist_ok=True)
    recipe = root / "served.yaml"
    num_users = max(1000, num_items // 10)
    recipe.write_text(
        RECIPE.format(
            root=root.resolve(), num_items=num_items, num_users=num_users, num_events=30 * num_users, steps=steps
        )
    )
    built = len(list((root / "served" / "index" / "versions").glob("[0-9]*")))
    if built == 0:
        for verb in (["prepare"], ["content", "embed"], ["train"], ["embed"], ["train-preranker"]):
            run_verb(*verb, str(recipe))
    for _ in range(built, versions):
        run_verb("build-index", str(recipe), "--set", f"index.keep_versions={versions}")
    return recipe


def run_verb(*words: str) -> None:
    """Runs one verb of mtmh in a process of its own."""
    print("mtmh", *words, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "mtmh.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mtmh {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
