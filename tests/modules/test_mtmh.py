"""The item tower against the same arithmetic written plainly in float64, and what TorchRec asks of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mtmh.modules import MTMH, DenseNN, Head, HeadMLP, SparseNN, TeacherEmbeddings, build_ebc, contrastive_losses
from torch import Tensor, nn
from torchrec.distributed.train_pipeline.tracing import Tracer
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ROWS = {"item_id": 50, "brand": 7, "tags": 11}
DIMS = {"item_id": 8, "brand": 4, "tags": 12}
KEYS = ["tags", "item_id", "brand"]  # not the order of the tables
NUM_FLOATS = 3
SETTINGS = {
    "single-task": [Head("engagement")],
    "MTSH": [Head("multi_task", relevance_weight=0.5)],
    "STMH": [Head("engagement"), Head("relevance", engagement_weight=0.0, relevance_weight=1.0)],
    "MTMH": [Head("engagement"), Head("relevance", relevance_weight=0.5)],
}


def make_model(
    heads: list[Head] = SETTINGS["MTMH"],
    normalize: bool = True,
    data_type: DataType = DataType.FP32,
    num_floats: int = NUM_FLOATS,
) -> MTMH:
    torch.manual_seed(0)
    sparse_nn = SparseNN(build_ebc(ROWS, DIMS, data_type), KEYS)
    return MTMH(sparse_nn, DenseNN(num_floats, [6], 5), heads, head_hidden=[16], head_dim=8, normalize=normalize)


def make_ids(batch_size: int, seed: int = 0) -> tuple[KeyedJaggedTensor, dict[str, list[list[int]]]]:
    """Ids as TorchRec and as plain lists; ``tags`` has none, one or several values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, count: int) -> list[int]:
        drawn: list[int] = torch.randint(rows, (count,), generator=generator).tolist()
        return drawn

    ids = {key: [draw(ROWS[key], i % 4 if key == "tags" else 1) for i in range(batch_size)] for key in DIMS}
    values = [value for key in DIMS for bag in ids[key] for value in bag]
    lengths = [len(bag) for key in DIMS for bag in ids[key]]
    return KeyedJaggedTensor(keys=list(DIMS), values=torch.tensor(values), lengths=torch.tensor(lengths)), ids


def plain_forward(
    parameters: dict[str, Tensor], ids: dict[str, list[list[int]]], dense: Tensor, heads: list[Head], normalize: bool
) -> dict[str, Tensor]:
    """Naive indexing, means and matrix products, in the dtype of the parameters."""
    pooled = []
    for key in KEYS:
        table = parameters[f"sparse_nn.ebc.embedding_bags.{key}.weight"]
        pooled.append(torch.stack([table[bag].mean(0) if bag else table.new_zeros(table.shape[1]) for bag in ids[key]]))

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    hidden = linear(dense, "dense_nn.mlp.0").clamp(min=0.0)
    features = torch.cat([*pooled, linear(hidden, "dense_nn.mlp.2").clamp(min=0.0)], dim=1)
    embeddings = {}
    for head in heads:
        x = linear(features, f"head_mlps.{head.name}.mlp.0").clamp(min=0.0)
        x = linear(x, f"head_mlps.{head.name}.mlp.2")
        embeddings[head.name] = x / x.square().sum(1, keepdim=True).sqrt() if normalize else x
    return embeddings


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_values_and_gradients_equal_plain_float64(setting: str, normalize: bool) -> None:
    heads = SETTINGS[setting]
    model = make_model(heads, normalize)
    features, ids = make_ids(9)
    dense = torch.randn(9, NUM_FLOATS)
    exact = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}

    found = model(features, dense)
    expected = plain_forward(exact, ids, dense.double(), heads, normalize)
    assert list(found) == [head.name for head in heads]
    for name, embedding in found.items():
        assert embedding.shape == (9, 8)
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.double(), expected[name], rtol=1e-5, atol=1e-6)

    mix = torch.randn(len(heads), 9, 8)
    (torch.stack(list(found.values())) * mix).sum().backward()
    (torch.stack(list(expected.values())) * mix.double()).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, rtol=1e-4, atol=1e-5)


def test_unit_length() -> None:
    features, _ = make_ids(5)
    for embedding in make_model()(features, torch.randn(5, NUM_FLOATS)).values():
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))


def test_a_head_costs_its_mlp_only() -> None:
    single, two = make_model(SETTINGS["single-task"]), make_model(SETTINGS["MTMH"])
    added = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in single.parameters())
    assert added == sum(p.numel() for p in HeadMLP(24 + 5, [16], 8).parameters())


def test_fp16_tables_feed_float32_towers() -> None:
    half, full = make_model(data_type=DataType.FP16), make_model()
    tables = half.sparse_nn.ebc.state_dict()
    assert {table.dtype for table in tables.values()} == {torch.float16}
    full.load_state_dict(half.state_dict())
    features, _ = make_ids(6)
    dense = torch.randn(6, NUM_FLOATS)
    found, expected = half(features, dense), full(features, dense)
    for name, embedding in found.items():
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding, expected[name], rtol=1e-2, atol=2e-3)
    torch.stack(list(found.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


def test_without_float_features() -> None:
    features, _ = make_ids(4)
    model = make_model(num_floats=0)
    assert not list(model.dense_nn.parameters())
    assert model(features, torch.zeros(4, 0))["engagement"].shape == (4, 8)


def test_columns_follow_keys_whatever_the_order_of_the_collection() -> None:
    class Shuffled(nn.Module):
        """Stands for a sharded collection, whose column order depends on the plan."""

        def __init__(self) -> None:
            super().__init__()
            self.ebc = build_ebc({key: ROWS[key] for key in order}, {key: DIMS[key] for key in order})

        def forward(self, features: KeyedJaggedTensor) -> object:
            return self.ebc(features)

    order = ["brand", "tags", "item_id"]
    model = make_model()
    shuffled = SparseNN(Shuffled(), KEYS)
    shuffled.ebc.ebc.load_state_dict(model.sparse_nn.ebc.state_dict())
    features, _ = make_ids(6)
    torch.testing.assert_close(shuffled(features), model.sparse_nn(features))


def test_managed_collision_twin() -> None:
    ebc = build_ebc(ROWS, DIMS)
    collisions = ManagedCollisionCollection(
        {
            name: MCHManagedCollisionModule(
                zch_size=rows,
                device=torch.device("cpu"),
                input_hash_size=2**62,
                eviction_interval=1,
                eviction_policy=DistanceLFU_EvictionPolicy(),
            )
            for name, rows in ROWS.items()
        },
        ebc.embedding_bag_configs(),
    )
    sparse_nn = SparseNN(ManagedCollisionEmbeddingBagCollection(ebc, collisions), KEYS)
    features, _ = make_ids(4)
    raw = KeyedJaggedTensor(keys=features.keys(), values=features.values() + 2**40, lengths=features.lengths())
    assert sparse_nn.out_dim == 24
    assert sparse_nn(raw).shape == (4, 24)


def test_quantised_tables_come_close() -> None:
    model = make_model().eval()
    features, _ = make_ids(6)
    dense = torch.randn(6, NUM_FLOATS)
    expected = model(features, dense)
    quantised = quantize_embeddings(copy.deepcopy(model), torch.qint8, inplace=True)
    for name, embedding in quantised(features, dense).items():
        torch.testing.assert_close(embedding, expected[name], rtol=0.0, atol=0.02)


def test_pipelines_can_trace_it() -> None:
    """TrainPipelineSparseDist traces the forward and needs the features to reach the collection untouched."""
    model = make_model()
    graph = Tracer(leaf_modules=["sparse_nn.ebc"]).trace(model)
    (lookup,) = [node for node in graph.nodes if node.op == "call_module" and node.target == "sparse_nn.ebc"]
    assert [argument.op for argument in lookup.args] == ["placeholder"]
    features, _ = make_ids(5)
    dense = torch.randn(5, NUM_FLOATS)
    traced = torch.fx.GraphModule(model, graph)(features, dense)
    for name, embedding in model(features, dense).items():
        torch.testing.assert_close(traced[name], embedding)


def test_export_takes_any_batch_size() -> None:
    class FromTensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()

        def forward(self, values: Tensor, lengths: Tensor, dense: Tensor) -> dict[str, Tensor]:
            ids = KeyedJaggedTensor(keys=list(DIMS), values=values, lengths=lengths)
            embeddings: dict[str, Tensor] = self.model(ids, dense)
            return embeddings

    def arguments(batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        ids, _ = make_ids(batch_size)
        return ids.values(), ids.lengths(), torch.randn(batch_size, NUM_FLOATS)

    model = FromTensors().eval()
    num_values, batch = torch.export.Dim("num_values", min=2), torch.export.Dim("batch", min=2)
    sizes = ({0: num_values}, {0: len(DIMS) * batch}, {0: batch})
    exported = torch.export.export(model, arguments(4), strict=False, dynamic_shapes=sizes).module()
    other = arguments(7)
    for name, embedding in model(*other).items():
        torch.testing.assert_close(exported(*other)[name], embedding)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_few_steps_lower_the_loss(setting: str) -> None:
    """Pairs of items of one brand, with the brand as the teacher's content."""
    heads = SETTINGS[setting]
    model = make_model(heads)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    features, ids = make_ids(48)
    content = torch.eye(ROWS["brand"])[torch.tensor(ids["brand"]).squeeze(1)]
    same_brand = (content @ content.T).fill_diagonal_(0.0).nonzero()
    trigger, positive = same_brand.unbind(1)
    dense = torch.zeros(48, NUM_FLOATS)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        by_head = list(model(features, dense).values())
        loss = contrastive_losses(
            [x[trigger] for x in by_head],
            [x[positive] for x in by_head],
            by_head,
            heads,
            temperature=0.1,
            teacher=TeacherEmbeddings(content[trigger], content[positive], content, temperature=0.3),
            hits=(torch.arange(len(trigger)), trigger),
        )
        (loss.total / len(trigger)).backward()
        optimizer.step()
        losses.append(float(loss.total))
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.8 * losses[0]


def test_initial_embeddings_are_small_and_differ() -> None:
    weight = build_ebc({"item_id": 1000}, {"item_id": 16}).embedding_bags["item_id"].weight
    assert weight.abs().max() <= 0.5 / math.sqrt(16)
    assert weight.std() > 0.25 / math.sqrt(16)


def test_bad_settings_say_what_was_expected() -> None:
    ebc = build_ebc(ROWS, DIMS)
    with pytest.raises(ValueError, match="'price'"):
        SparseNN(ebc, ["item_id", "price"])
    with pytest.raises(ValueError, match="distinct"):
        SparseNN(ebc, ["item_id", "item_id"])
    with pytest.raises(ValueError, match="no embedding_bag_configs"):
        SparseNN(nn.Linear(2, 2), ["item_id"])
    with pytest.raises(ValueError, match="same features"):
        build_ebc({"item_id": 5}, {"brand": 4})
    with pytest.raises(ValueError, match="multiple of 4"):
        build_ebc({"item_id": 5}, {"item_id": 6})
    with pytest.raises(ValueError, match="distinct names"):
        make_model([Head("engagement"), Head("engagement")])
    with pytest.raises(ValueError, match="at least one head"):
        make_model([])
    with pytest.raises(ValueError, match="has no loss"):
        Head("engagement", 0.0, 0.0)
    with pytest.raises(ValueError, match="at least 0"):
        Head("engagement", -1.0)
    with pytest.raises(ValueError, match="at least 0"):
        Head("engagement", math.nan)
    with pytest.raises(ValueError, match="widths"):
        HeadMLP(4, [0], 8)
    with pytest.raises(ValueError, match="num_features"):
        DenseNN(-1, [4], 4)


def test_without_layers_a_head_is_the_vectors_of_the_tables() -> None:
    """ItemCF: one table, no numbers, no layer; the cosine of the vectors orders as their Euclidean distance does."""
    torch.manual_seed(0)
    sparse_nn = SparseNN(build_ebc({"item_id": 50}, {"item_id": 8}), ["item_id"])
    model = MTMH(sparse_nn, DenseNN(0, [6], 5), [Head("engagement")], head_hidden=None, head_dim=8)
    features, ids = make_ids(9)  # the batch has more features than the model reads, and numbers
    found = model(features, torch.randn(9, NUM_FLOATS))["engagement"]
    table = sparse_nn.ebc.state_dict()["embedding_bags.item_id.weight"].double()
    expected = torch.stack([table[bag[0]] / table[bag[0]].square().sum().sqrt() for bag in ids["item_id"]])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert [name for name, _ in model.named_parameters()] == ["sparse_nn.ebc.embedding_bags.item_id.weight"]
    torch.testing.assert_close((expected[:1] - expected).square().sum(1), 2.0 - 2.0 * (expected @ expected[0]))


def test_a_head_without_layers_has_the_width_that_it_is_given() -> None:
    with pytest.raises(ValueError, match="expected out_dim=6, got 4"):
        HeadMLP(6, None, 4)
