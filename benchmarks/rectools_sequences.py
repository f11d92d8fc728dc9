"""Trains RecTools' SASRec or HSTU on the sequences of `benchmarks.sequence_models`, which calls this file by itself.

It imports nothing of this project, for it runs in an environment that has RecTools alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
from pytorch_lightning import seed_everything  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.models import HSTUModel, SASRecModel  # type: ignore[import-not-found]


def main() -> None:
    """Reads sequences, trains, and writes ranked lists as CSV (``user_id, item_id, rank``), and the fit's seconds."""
    sequences, lists, kind, *numbers = sys.argv[1:]
    dim, layers, heads, epochs, batch = map(int, numbers[:5])
    rate, dropout, temperature = map(float, numbers[5:8])
    negatives, seed, length, k = map(int, numbers[8:])
    seed_everything(seed, workers=True)
    events = pd.read_csv(sequences).sort_values("place")
    events["datetime"] = pd.to_datetime(events["time"], unit="s")
    events["weight"] = 1.0
    dataset = Dataset.construct(events[["user_id", "item_id", "datetime", "weight"]])
    model = (SASRecModel if kind == "sasrec" else HSTUModel)(
        n_factors=dim,
        n_blocks=layers,
        n_heads=heads,
        epochs=epochs,
        batch_size=batch,
        lr=rate,
        dropout_rate=dropout,
        loss="sampled_softmax",
        n_negatives=negatives,
        session_max_len=length,
        train_min_user_interactions=2,
        deterministic=True,
        recommend_torch_device="cpu",
        # Of cosines, which HSTU compares; SASRec compares inner products.
        lightning_module_kwargs={"logits_t": temperature} if kind == "hstu" else None,
    )
    started = time.perf_counter()
    model.fit(dataset)
    Path(lists).with_suffix(".seconds").write_text(str(time.perf_counter() - started))
    users = events["user_id"].unique()
    context = None
    if model.require_recommend_context:  # HSTU wants the time of the answer: that of the last event, as ours has it
        context = events.groupby("user_id", as_index=False)["datetime"].max().assign(weight=1.0)
        context["datetime"] += pd.Timedelta(seconds=1)  # behind the event, in the same bucket of time gaps
    found = model.recommend(users=users, dataset=dataset, k=k, filter_viewed=True, context=context)
    found[["user_id", "item_id", "rank"]].to_csv(lists, index=False)


if __name__ == "__main__":
    main()
