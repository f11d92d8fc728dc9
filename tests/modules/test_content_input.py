"""Content embeddings as an input: principal components, and a learned vector where an item has none."""

import pytest
import torch
from mtmh.modules import MTMH, DenseNN, Head, SparseNN, build_ebc
from mtmh.modules.content_input import ContentInput
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def embeddings(num: int, seed: int = 0) -> torch.Tensor:
    """Most of the variance lies along the first axes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 6, generator=generator) * torch.tensor([4.0, 3.0, 2.0, 0.1, 0.1, 0.1]) + 1.0


def test_components_hold_the_distances_of_the_embeddings() -> None:
    content = embeddings(500)
    content_nn = ContentInput(6, 3)
    content_nn.fit(content)
    found = content_nn(content).detach()
    assert found.square().mean().item() == pytest.approx(1.0, abs=1e-3)
    distances = [torch.cdist(rows, rows).flatten() for rows in (found, content)]
    assert torch.corrcoef(torch.stack(distances))[0, 1] > 0.99
    order = found.var(dim=0)
    assert order[0] > order[1] > order[2]


def test_items_without_content_take_no_part_and_get_a_learned_vector() -> None:
    content = embeddings(400)
    holed = torch.cat([content, torch.zeros(300, 6)])
    whole, with_holes = ContentInput(6, 4), ContentInput(6, 4)
    whole.fit(content)
    with_holes.fit(holed)
    assert torch.allclose(whole(content), with_holes(content), atol=1e-5)
    with_holes(holed[398:402]).sum().backward()
    assert with_holes.missing.grad is not None
    assert with_holes.missing.grad.tolist() == [2.0] * 4
    with pytest.raises(ValueError, match="no item has a content embedding"):
        whole.fit(torch.zeros(5, 6))


def test_more_components_than_there_are_dimensions() -> None:
    content_nn = ContentInput(6, 64)
    content_nn.fit(embeddings(50))
    assert content_nn.out_dim == 6
    assert content_nn(embeddings(2)).shape == (2, 6)


def test_the_tower_tells_items_apart_by_content_alone() -> None:
    torch.manual_seed(0)
    content_nn = ContentInput(6, 4)
    content_nn.fit(embeddings(50))
    sparse_nn = SparseNN(build_ebc({"item_id": 3}, {"item_id": 4}), ["item_id"])
    model = MTMH(sparse_nn, DenseNN(1, [], 2), [Head("engagement")], [8], 8, content_nn=content_nn)
    ids = KeyedJaggedTensor(keys=["item_id"], values=torch.zeros(2, dtype=torch.int64), lengths=torch.ones(2).long())
    a, b = model(ids, torch.zeros(2, 1), embeddings(2))["engagement"]
    assert (a @ b).item() < 0.99
    with pytest.raises(ValueError, match="give it content"):
        model(ids, torch.zeros(2, 1))
