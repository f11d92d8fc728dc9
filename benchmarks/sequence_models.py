"""Our SASRec or HSTU beside RecTools', on the same sequences of a ratings file, by the same leave-one-out.

    python -m venv rectools && rectools/bin/pip install "rectools[torch]"
    python -m benchmarks.sequence_models data/movielens-latest-small/ratings.csv --kind sasrec \
        --rectools rectools/bin/python --out runs/sequence-models

Each user's last event is asked for among the whole catalogue, without what the user had; of those before it the last
50 are trained on. Widths, layers, passes, batch, rate, dropout and the number of negatives are the same; what differs
is what the two make of it: ours compares unit vectors at a temperature, as RecTools' HSTU does (at ours here; 1 is its
own), and shares its negatives among a batch. Recall and NDCG of both are computed here. RecTools pins versions of its
own, so it lives in an environment of its own; without ``--rectools`` only ours is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import torch
from mtmh.modules.sequence_model import ITEM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.report import report_head
from mtmh.papers.sequence_model import Pieces, SequenceSettings, fit_sequence_model

LENGTH = 50  # events of a user that are trained on
MIN_RATING = 3.5
CUTS = (10, 100)


def main() -> None:
    """Parses the command line, trains both and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ratings", type=Path, help="CSV of userId, movieId, rating, timestamp")
    parser.add_argument("--kind", choices=("sasrec", "hstu"), default="sasrec")
    parser.add_argument("--rectools", type=Path, help="the Python of an environment that has RecTools")
    parser.add_argument("--users", type=int, help="only so many, for a quick look")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = SequenceSettings(
        arguments.kind,
        arguments.dim,
        arguments.negatives,
        arguments.seed,
        arguments.epochs,
        min_steps=0,
        max_length=LENGTH,
        learning_rate=arguments.rate,
    )
    pieces, wanted = read_sequences(arguments.ratings, arguments.users)
    found = {}
    started = time.time()
    found["ours"] = measured(our_lists(pieces, settings), wanted) | {"seconds": round(time.time() - started)}
    if arguments.rectools:
        started = time.time()
        lists = their_lists(pieces, settings, arguments.rectools, arguments.out)
        found["RecTools"] = measured(lists, wanted) | {"seconds": round(time.time() - started)}
    lines = [f"| {arguments.kind} | " + " | ".join(found["ours"]) + " |", "|---|" + "---:|" * len(found["ours"])]
    lines += [f"| {name} | " + " | ".join(f"{value:g}" for value in row.values()) + " |" for name, row in found.items()]
    print("\n".join(lines))
    result = report_head(arguments) | {"users": len(wanted), "found": found}
    (arguments.out / f"{arguments.kind}.json").write_text(json.dumps(result, indent=2))


def read_sequences(path: Path, num_users: int | None) -> tuple[Pieces, npt.NDArray[np.int64]]:
    """Users' events but the last in time order, rows from 1 on, a piece a user; and the last events [U].

    Args:
        path: of the ratings; those of 3.5 and more are events.
        num_users: the first so many with at least three; None: all.
    """
    table = pcsv.read_csv(path)
    table = table.filter(pc.greater_equal(table["rating"], MIN_RATING))
    table = table.sort_by([("userId", "ascending"), ("timestamp", "ascending"), ("movieId", "ascending")])
    users, times = (table[name].to_numpy() for name in ("userId", "timestamp"))
    rows = np.unique(table["movieId"].to_numpy(), return_inverse=True)[1] + 1
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    ends = np.append(starts[1:], len(users))
    chosen = np.flatnonzero(ends - starts >= 3)[:num_users]
    spans = [np.arange(max(starts[user], ends[user] - 1 - LENGTH), ends[user] - 1) for user in chosen]
    offsets = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
    events = np.concatenate(spans)
    return Pieces(rows[events].astype(np.int64), times[events].astype(np.int64), offsets), rows[ends[chosen] - 1]


def our_lists(pieces: Pieces, settings: SequenceSettings) -> npt.NDArray[np.int64]:
    """[U, 100] rows, best first, of what comes after each piece."""
    num_rows = int(pieces.rows.max()) + 1
    model = fit_sequence_model(pieces, num_rows, settings).eval()
    lists = []
    with torch.no_grad():
        items = model.embed(torch.arange(num_rows))
        for start, end in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True):
            rows, times = torch.from_numpy(pieces.rows[start:end]), torch.from_numpy(pieces.times[start:end])
            history = KeyedJaggedTensor([ITEM], rows, lengths=torch.tensor([len(rows)]))
            scores = model(history, times[None])[0, -1] @ items.T
            scores[rows], scores[0] = -math.inf, -math.inf
            lists.append(scores.topk(CUTS[-1]).indices.numpy())
    return np.stack(lists)


def their_lists(pieces: Pieces, settings: SequenceSettings, python: Path, out: Path) -> npt.NDArray[np.int64]:
    """The same by RecTools, in its own environment."""
    users = np.repeat(np.arange(len(pieces.offsets) - 1), np.diff(pieces.offsets))
    place = np.arange(len(users))  # times of equal events in the order that ours have
    sequences, lists = out / "sequences.csv", out / f"{settings.kind}-rectools.csv"
    columns = {"user_id": users, "item_id": pieces.rows, "time": pieces.times, "place": place}
    pcsv.write_csv(pa.table(columns), sequences)
    script = Path(__file__).with_name("rectools_sequences.py")
    words: Sequence[object] = (
        settings.kind, settings.dim, settings.num_layers, settings.num_heads, settings.epochs, settings.batch_pieces,
        settings.learning_rate, settings.dropout, settings.temperature, settings.num_negatives, settings.seed, LENGTH,
        CUTS[-1],
    )  # fmt: skip
    subprocess.run([python, script, sequences, lists, *map(str, words)], check=True)
    found = pcsv.read_csv(lists)
    answers = np.full((len(pieces.offsets) - 1, CUTS[-1]), -1, np.int64)
    answers[found["user_id"].to_numpy(), found["rank"].to_numpy() - 1] = found["item_id"].to_numpy()
    return answers


def measured(lists: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> dict[str, float]:
    """Recall and NDCG of one item wanted a user, in percent."""
    hits = lists == wanted[:, None]
    gains = hits / np.log2(np.arange(lists.shape[1]) + 2)
    recall = {f"recall@{cut}": 100.0 * float(hits[:, :cut].any(axis=1).mean()) for cut in CUTS}
    ndcg = {f"NDCG@{cut}": 100.0 * float(gains[:, :cut].sum(axis=1).mean()) for cut in CUTS}
    return {name: round(value, 2) for name, value in (recall | ndcg).items()}


if __name__ == "__main__":
    main()
