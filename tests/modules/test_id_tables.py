"""Tables of raw ids, whole in one process, against a naive dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from mtmh.modules import HashIdRows, IdTable, SparseNN, build_ebc, build_managed_ebc
from mtmh.modules.id_tables import scrambled
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

ROWS, BUCKETS, PROBE = 60, 6, 7
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
TABLES = {
    "none": IdTable(ROWS, BUCKETS, PROBE),
    "lru": IdTable(ROWS, BUCKETS, PROBE, eviction="lru"),
    "ttl": IdTable(ROWS, BUCKETS, PROBE, eviction="ttl", ttl_steps=2),
}


def bags(ids: list[list[int]]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=["item_id"],
        values=torch.tensor([value for bag in ids for value in bag], dtype=torch.int64),
        lengths=torch.tensor([len(bag) for bag in ids]),
    )


def make(table: IdTable, device: str = "cpu") -> tuple[SparseNN, HashIdRows]:
    managed = build_managed_ebc({"item_id": table}, {"item_id": 4}, device=device)
    (rows,) = (module for module in managed.modules() if isinstance(module, HashIdRows))
    return SparseNN(None, ["item_id"], managed), rows


def step(rows: HashIdRows, ids: list[int]) -> dict[int, int]:
    """One step of training; the row of each id, left out if it has none."""
    features = bags([[raw] for raw in ids]).to(rows.device)
    out = rows({"item_id": features["item_id"]})["item_id"]
    rows.evict()
    rows.now += 1
    values = iter(out.values().tolist())
    return {raw: next(values) for raw, found in zip(ids, out.lengths().tolist(), strict=True) if found}


@dataclass
class Naive:
    """The same by loops over ids and rows; only the hash is FBGEMM's."""

    table: IdTable
    rows: HashIdRows
    owner: dict[int, int] = field(default_factory=dict)  # row -> scrambled id
    seen: dict[int, int] = field(default_factory=dict)  # row -> step
    num_evictions: int = 0

    def probes(self, key: int) -> list[int]:
        size = self.table.rows // self.table.buckets
        start = size * (key % self.table.buckets)
        named, _ = torch.ops.fbgemm.zero_collision_hash(
            torch.tensor([key]), torch.full((size, 1), -1), 0, True, -1, True, None, None
        )
        return [start + (int(named) + i) % size for i in range(self.table.max_probe)]

    def choose(self, key: int, now: int) -> int | None:
        probes = self.probes(key)
        free = [row for row in probes if row not in self.owner]
        if self.table.eviction == "lru":
            free = free or sorted((row for row in probes if self.seen[row] < now), key=lambda row: self.seen[row])
        elif self.table.ttl_steps is not None:
            lives = self.table.ttl_steps
            free = [row for row in probes if row not in self.owner or self.seen[row] + lives < now]
        return free[0] if free else None

    def step(self, ids: list[int], now: int) -> dict[int, int]:
        keys = {raw: int(scrambled(torch.tensor(raw))) for raw in ids}
        row_of = {key: row for row, key in self.owner.items()}
        for key in keys.values():
            if key in row_of:
                self.seen[row_of[key]] = now
        waiting = sorted(set(keys.values()) - row_of.keys())
        while waiting:
            wishes: dict[int, int] = {}
            for key in waiting:
                row = self.choose(key, now)
                if row is not None:
                    wishes.setdefault(row, key)
            for row, key in wishes.items():
                self.num_evictions += row in self.owner
                row_of.pop(self.owner.get(row, -1), None)
                self.owner[row], self.seen[row], row_of[key] = key, now, row
            waiting = [key for key in waiting if key not in row_of and self.choose(key, now) is not None]
        return {raw: row_of[key] for raw, key in keys.items() if key in row_of}


def draw(seed: int, generator: torch.Generator) -> list[int]:
    """Ids of one step: some that come again and again, others from far away, both with repeats."""
    often = torch.randint(0, 40, (12,), generator=generator) * 10 + seed
    rare = torch.randint(-(2**62), 2**62, (12,), generator=generator)
    return torch.cat([often, rare, rare[:3]])[torch.randperm(27, generator=generator)].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", TABLES)
def test_ids_find_their_rows_as_in_a_dictionary(kind: str, seed: int, device: str) -> None:
    _, rows = make(TABLES[kind], device)
    naive = Naive(TABLES[kind], rows)
    generator = torch.Generator().manual_seed(seed)
    lookups = collisions = 0
    for now in range(1, 13):
        ids = draw(seed, generator)
        found = step(rows, ids)
        assert found == naive.step(ids, now), now
        assert len(set(found.values())) == len(found), "two ids share a row"
        lookups += len(ids)
        collisions += sum(raw not in found for raw in ids)
    identities = rows.identities.tolist()
    assert {row: key for row, key in enumerate(identities) if key >= 0} == naive.owner
    assert (rows.num_lookups, int(rows.num_collisions)) == (lookups, collisions)
    assert rows.num_evictions == naive.num_evictions
    assert collisions > 0 or kind == "lru", "the table was never full"
    assert (naive.num_evictions > 0) == (kind != "none")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", TABLES)
def test_the_order_in_a_batch_does_not_matter(kind: str, device: str) -> None:
    (_, first), (_, other) = make(TABLES[kind], device), make(TABLES[kind], device)
    generator = torch.Generator().manual_seed(5)
    for _ in range(6):
        ids = draw(0, generator)
        assert step(first, ids) == step(other, ids[::-1])
    assert torch.equal(first.identities, other.identities)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", TABLES)
def test_a_new_id_from_several_ranks_takes_one_row_and_no_id_of_the_step_loses_its_own(kind: str, device: str) -> None:
    _, rows = make(TABLES[kind], device)
    generator = torch.Generator().manual_seed(8)
    known = step(rows, torch.randint(0, 2**62, (50,), generator=generator).tolist())
    for _ in range(20):
        again = list(known)[:20]
        new = torch.randint(0, 2**62, (30,), generator=generator).tolist()
        before = {raw: row for raw, row in known.items() if raw in again}
        ids = (again + new) * 8  # as the batches of eight ranks send them
        found = step(rows, [ids[place] for place in torch.randperm(len(ids), generator=generator).tolist()])
        assert {raw: found.get(raw) for raw in again} == before
        taken = rows.identities[rows.identities >= 0].tolist()
        assert len(set(taken)) == len(taken), "an id has two rows"
        assert len(set(found.values())) == len(found), "two ids share a row"
        known = found
    assert (rows.num_evictions > 0) == (kind != "none")


@pytest.mark.parametrize("device", DEVICES)
def test_lru_evicts_the_id_seen_longest_ago_and_never_one_of_this_step(device: str) -> None:
    _, rows = make(IdTable(rows=3, buckets=1, max_probe=3, eviction="lru"), device)
    first = step(rows, [1, 2, 3])
    step(rows, [1, 3])
    assert step(rows, [4]) == {4: first[2]}
    step(rows, [3, 4])
    assert step(rows, [3, 4, 5]) == {3: first[3], 4: first[2], 5: first[1]}
    assert step(rows, [3, 4, 5, 6, 7]).keys() == {3, 4, 5}


@pytest.mark.parametrize("device", DEVICES)
def test_ttl_keeps_an_id_for_its_time(device: str) -> None:
    _, rows = make(IdTable(rows=2, buckets=1, max_probe=2, eviction="ttl", ttl_steps=2), device)
    first = step(rows, [1, 2])
    step(rows, [2])
    assert step(rows, [2, 3]) == {2: first[2]}, "two steps ago"
    assert step(rows, [3]) == {3: first[1]}, "three steps ago"


@pytest.mark.parametrize("device", DEVICES)
def test_eval_never_inserts_and_unseen_ids_are_zero_vectors(device: str) -> None:
    sparse_nn, rows = make(IdTable(rows=96, buckets=48), device)
    assert sparse_nn.raw_keys == {"item_id"}
    trained = sparse_nn(bags([[2**62], [7], [-8]]).to(rows.device))
    before = rows.identities.clone()
    assert int((before >= 0).sum()) == 3
    sparse_nn.eval()
    found = sparse_nn(bags([[7], [], [9], [2**62, 7], [-8], [8]]).to(rows.device))
    assert torch.equal(rows.identities, before)
    nothing = torch.zeros(4, device=device)
    for row, expected in zip(found, [trained[1], nothing, nothing, None, trained[2], nothing], strict=True):
        if expected is not None:
            assert torch.equal(row, expected)
    torch.testing.assert_close(found[3], (trained[0] + trained[1]) / 2)


def test_an_id_without_a_row_teaches_no_row() -> None:
    sparse_nn, rows = make(IdTable(rows=2, buckets=1))
    out = sparse_nn(bags([[1], [2], [3], [4]]))
    assert (rows.num_lookups, int(rows.num_collisions)) == (4, 2)
    out.sum().backward()
    (weight,) = (parameter for parameter in sparse_nn.parameters() if parameter.requires_grad)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(2, 4))


def test_beside_tables_with_a_vocabulary() -> None:
    ebc = build_ebc({"brand": 5, "tag": 3}, {"brand": 4, "tag": 8})
    managed = build_managed_ebc({"item_id": IdTable(rows=48)}, {"item_id": 4})
    sparse_nn = SparseNN(ebc, ["tag", "item_id", "brand"], managed)
    features = KeyedJaggedTensor(
        keys=["brand", "item_id", "tag"],
        values=torch.tensor([4, 0, 2**50, 2**51, 1, 2]),
        lengths=torch.tensor([1, 1, 1, 1, 2, 0]),
    )
    out = sparse_nn(features)
    tag = ebc.embedding_bags["tag"].weight
    assert sparse_nn.out_dim == out.shape[1] == 16
    torch.testing.assert_close(out[0, :8], (tag[1] + tag[2]) / 2)
    torch.testing.assert_close(out[:, 12:], ebc.embedding_bags["brand"].weight[[4, 0]])
    table = managed._embedding_module
    assert isinstance(table, EmbeddingBagCollection)
    owned = table.embedding_bags["item_id"].weight
    assert all((owned == row).all(dim=1).sum() == 1 for row in out[:, 8:12])
    with pytest.raises(ValueError, match="both serve item_id"):
        SparseNN(build_ebc({"item_id": 5}, {"item_id": 4}), ["item_id"], managed)


def test_scrambled_is_one_to_one_and_fills_buckets_evenly() -> None:
    ids = torch.cat([torch.arange(0, 4_800_000, 48), torch.randint(0, 2**63 - 1, (100_000,))]).unique()
    mixed = scrambled(ids)
    assert int(mixed.min()) >= 0
    assert len(mixed.unique()) == len(ids)
    counts = torch.bincount(scrambled(torch.arange(0, 4_800_000, 48)) % 48, minlength=48).double()
    expected = 100_000 / 48
    assert float(((counts - expected) ** 2 / expected).sum()) < 100, "chi-squared with 47 degrees of freedom"
    assert int(scrambled(torch.tensor(-1))) == int(scrambled(torch.tensor(2**63 - 1))), "the sign is dropped"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 50}, r"rows \(50\) must be a positive multiple of buckets \(48\)"),
        ({"rows": 48, "max_probe": 0}, "max_probe must be at least 1"),
        ({"rows": 48, "eviction": "ttl"}, "ttl_steps, at least 1, goes with eviction = ttl"),
        ({"rows": 48, "eviction": "ttl", "ttl_steps": 0}, r"at least 1, .* got 0 with ttl"),
        ({"rows": 48, "ttl_steps": 3}, "only with it; got 3 with none"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IdTable(**settings)
