"""The content encoder on tiny random encoders of several families, against each text encoded alone and unpadded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mtmh.modules.content_encoder import ContentEncoder, ContentInputs, PooledEncoder
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {"image_size": 8, "patch_size": 4}
TEXTS = [[5, 6, 7, 8], [9, 10], [11]]
PAD = 1


def bert() -> nn.Module:
    return BertModel(BertConfig(vocab_size=30, pad_token_id=PAD, **SMALL), add_pooling_layer=False)


def xlm_roberta() -> nn.Module:
    return XLMRobertaModel(XLMRobertaConfig(vocab_size=30, pad_token_id=PAD, **SMALL), add_pooling_layer=False)


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(vocab_size=30, num_key_value_heads=2, pad_token_id=PAD, **SMALL))


def clip_text() -> nn.Module:
    # CLIP takes the state at the end token, the one with the highest id.
    return CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=30, projection_dim=12, eos_token_id=29, pad_token_id=PAD, **SMALL)
    )


def clip_vision() -> nn.Module:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=12, **IMAGE, **SMALL))


def padded(texts: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), PAD), torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), longest) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize(
    ("build", "pooling", "width"),
    [
        (bert, "mean", 16),
        (xlm_roberta, "mean", 16),
        (xlm_roberta, "first", 16),
        (llama, "last", 16),
        (clip_text, "projection", 12),
    ],
)
def test_padding_does_not_change_a_text(build: Any, pooling: Any, width: Any) -> None:
    torch.manual_seed(0)
    encoder = PooledEncoder(build().eval(), pooling)
    texts = [[*text, 29] for text in TEXTS]
    ids, mask = padded(texts)
    together = encoder(input_ids=ids, attention_mask=mask)
    assert together.shape == (3, width) == (3, encoder.width)
    for row, text in enumerate(texts):
        alone = encoder(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text), dtype=torch.int64))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_pooling_is_what_its_name_says() -> None:
    torch.manual_seed(0)
    model = bert().eval()
    ids, mask = padded(TEXTS)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    for pooling, naive in (
        ("mean", lambda row, size: states[row, :size].mean(dim=0)),
        ("first", lambda row, size: states[row, 0]),
        ("last", lambda row, size: states[row, size - 1]),
    ):
        pooled = PooledEncoder(model, pooling)(input_ids=ids, attention_mask=mask)
        for row, text in enumerate(TEXTS):
            torch.testing.assert_close(pooled[row], naive(row, len(text)))


def test_last_token_with_padding_on_the_left() -> None:
    torch.manual_seed(0)
    model = llama().eval()
    ids, mask = padded(TEXTS, left=True)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = PooledEncoder(model, "last")(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(pooled, states[:, -1])


@pytest.mark.parametrize(
    ("model", "pooling", "width"),
    [
        (clip_vision, "projection", 12),
        (lambda: ViTModel(ViTConfig(**IMAGE, **SMALL), add_pooling_layer=False), "first", 16),
        (lambda: ViTModel(ViTConfig(**IMAGE, **SMALL), add_pooling_layer=False), "mean", 16),
        (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1])), "pooler", 10),
    ],
)
def test_image_encoders_of_several_families(model: Any, pooling: Any, width: Any) -> None:
    torch.manual_seed(0)
    encoder = PooledEncoder(model().eval(), pooling)
    size = 32 if pooling == "pooler" else 8
    assert encoder(pixel_values=torch.randn(2, 3, size, size)).shape == (2, width) == (2, encoder.width)


def test_a_pooling_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="BertModel cannot be pooled by 'projection'"):
        PooledEncoder(bert(), "projection")


def make_encoder(concept: bool = False, **towers: PooledEncoder | None) -> ContentEncoder:
    torch.manual_seed(0)
    text, image = PooledEncoder(bert(), "mean"), PooledEncoder(clip_vision(), "projection")
    own = PooledEncoder(xlm_roberta(), "mean") if concept else None
    parts = {"text": text, "image": image, "concept": own} | towers
    return ContentEncoder(**parts, hidden=[20], dim=6).eval()


def make_inputs(text_rows: list[int], image_rows: list[int], num_rows: int = 4) -> ContentInputs:
    """Row ``i`` always has the same text and image, if it has one."""
    texts = [[5 + row, 9, 3 + 2 * row] for row in range(num_rows)]
    pixels = torch.randn(num_rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ids, mask = padded(texts)
    return ContentInputs(
        num_rows=num_rows,
        token_ids=ids[text_rows],
        token_mask=mask[text_rows],
        text_rows=torch.tensor(text_rows, dtype=torch.int64),
        pixels=pixels[image_rows],
        image_rows=torch.tensor(image_rows, dtype=torch.int64),
    )


def test_embeddings_are_unit_vectors_and_rows_do_not_depend_on_order_or_company() -> None:
    encoder = make_encoder()
    whole = encoder.embed_content(make_inputs([0, 1, 3], [3, 0, 2]))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4))
    shuffled = encoder.embed_content(make_inputs([3, 0, 1], [0, 2, 3]))
    torch.testing.assert_close(whole, shuffled)
    text_only = encoder.embed_content(make_inputs([1], []))
    torch.testing.assert_close(whole[1], text_only[1])
    assert not torch.allclose(whole[0], whole[1])


def test_stand_ins_replace_what_is_missing_and_learn() -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.text_features.missing.normal_()
        encoder.image_features.missing.normal_()
    inputs = make_inputs([0], [0, 1])
    embeddings = encoder.embed_content(inputs)
    stand_in = torch.cat([encoder.text_features.missing, encoder.image_features.missing])[None]
    torch.testing.assert_close(embeddings[2:], encoder.fusion(stand_in).expand(2, -1))
    embeddings[1, 0].backward()
    assert encoder.text_features.missing.grad.abs().sum() > 0
    assert encoder.image_features.missing.grad.abs().sum() == 0


def test_nothing_at_all_still_has_an_embedding() -> None:
    encoder = make_encoder()
    embeddings = encoder.embed_content(make_inputs([], []))
    assert embeddings.shape == (4, 6)
    torch.testing.assert_close(embeddings, embeddings[:1].expand(4, -1))


def test_without_takes_modalities_away() -> None:
    inputs = make_inputs([0, 1, 3], [0, 2])
    text = torch.tensor([True, False, False, False])
    image = torch.tensor([False, False, True, True])
    kept, expected = inputs.without(text=text, image=image), make_inputs([1, 3], [0])
    for name in ("token_ids", "token_mask", "text_rows", "pixels", "image_rows"):
        assert torch.equal(getattr(kept, name), getattr(expected, name)), name
    assert inputs.text_rows.tolist() == [0, 1, 3]


def test_concept_tower_shares_the_text_encoder_or_has_its_own() -> None:
    ids, mask = padded([[7, 8], [9]])
    shared, own = make_encoder(), make_encoder(concept=True)
    assert shared.embed_concepts(ids, mask).shape == (2, 6)
    shared.embed_concepts(ids, mask)[0, 0].backward()
    assert shared.text.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    own.embed_concepts(ids, mask)[0, 0].backward()
    assert own.text.model.embeddings.word_embeddings.weight.grad is None
    assert own.concept.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    contents, concepts = own(make_inputs([0], [1]), ids, mask)
    assert contents.shape == (4, 6)
    torch.testing.assert_close(concepts.norm(dim=1), torch.ones(2))


def test_one_modality_is_enough() -> None:
    assert make_encoder(image=None).embed_content(make_inputs([0, 1], [2])).shape == (4, 6)
    image_only = make_encoder(text=None, concept=PooledEncoder(bert(), "mean"))
    assert image_only.embed_content(make_inputs([0, 1], [2])).shape == (4, 6)
    with pytest.raises(ValueError, match="text encoder, an image encoder or both"):
        make_encoder(text=None, image=None)
    with pytest.raises(ValueError, match="concept tower needs one of its own"):
        make_encoder(text=None)


def test_bf16_autocast_ends_in_float32() -> None:
    encoder = make_encoder()
    inputs = make_inputs([0, 2], [1])
    exact = encoder.embed_content(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder.embed_content(inputs)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.0)
