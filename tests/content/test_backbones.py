"""Encoders by name: which class, which pooling, and what is said when they cannot be had. Built offline, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mtmh.config import BackboneConfig
from mtmh.content.backbones import describe_backbone, load_backbone

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
IMAGE = {"image_size": 8, "patch_size": 4}


def load(kind: Any, model: Any, words: Any = (), **settings: Any) -> Any:
    return load_backbone(kind, BackboneConfig(model=str(model), **settings), f"content.encoder.{kind}", lambda: words)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    random = load("text", "random:tiny-text", words=["one two three"])
    transformers.BertForMaskedLM(random.encoder.model.config).save_pretrained(tmp_path)
    random.preprocessor.save_pretrained(tmp_path)
    return tmp_path


def save_clip(folder: Path) -> transformers.CLIPModel:
    """As the LAION checkpoints: one folder for both halves, the shared width at the top of the config."""
    text = {**SMALL, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **IMAGE}, projection_dim=12)
    )
    model.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(
        folder
    )
    return model


def test_text_encoder_without_documented_pooling_takes_the_mean(bert_folder: Path) -> None:
    backbone = load("text", bert_folder)
    assert (backbone.encoder.pooling, backbone.encoder.width) == ("mean", 64)
    assert not any("pooler" in name for name, _ in backbone.encoder.named_parameters())


@pytest.mark.parametrize(("mode", "pooling"), [("cls_token", "first"), ("mean_tokens", "mean"), ("lasttoken", "last")])
def test_text_pooling_follows_the_folder(bert_folder: Path, mode: Any, pooling: Any) -> None:
    (bert_folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    (bert_folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {"include_prompt": True}))
    assert load("text", bert_folder).encoder.pooling == pooling
    assert load("text", bert_folder, pooling="first").encoder.pooling == "first"


def test_unsupported_documented_pooling_is_an_error(bert_folder: Path) -> None:
    (bert_folder / "1_Pooling").mkdir()
    (bert_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pooling_mode_max_tokens is not supported"):
        load("text", bert_folder)


def test_image_half_of_a_clip_checkpoint_with_its_projection(tmp_path: Path) -> None:
    whole = save_clip(tmp_path).eval()
    backbone = load("image", tmp_path)
    assert (backbone.encoder.pooling, backbone.encoder.width) == ("projection", 12)
    pixels = torch.randn(2, 3, 8, 8)
    expected = whole.visual_projection(whole.vision_model(pixels).pooler_output)
    torch.testing.assert_close(backbone.encoder.eval()(pixel_values=pixels), expected)


def test_vit_without_a_trained_pooler_takes_the_first_token(tmp_path: Path) -> None:
    transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **IMAGE)).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    assert load("image", tmp_path).encoder.pooling == "first"
    with pytest.raises(ValueError, match=r"no weights for pooler\.dense\.bias"):
        load("image", tmp_path, pooling="pooler")


def test_description_brings_back_the_architecture(tmp_path: Path, bert_folder: Path) -> None:
    save_clip(tmp_path / "clip")
    for kind, backbone in (("text", load("text", bert_folder)), ("image", load("image", tmp_path / "clip"))):
        backbone.save_description(tmp_path / kind)
        again = describe_backbone(kind, tmp_path / kind, backbone.encoder.pooling)
        again.encoder.load_state_dict(backbone.encoder.state_dict())
        assert type(again.encoder.model) is type(backbone.encoder.model)


def test_random_tokenizer_is_the_same_for_the_same_words() -> None:
    words = ["Red apple pie", "red wine", "#apple"]
    first, second = (load("text", "random:tiny-text", words=texts).preprocessor for texts in (words, words[::-1]))
    assert first.get_vocab() == second.get_vocab()
    ids = first(["RED apple zebra"])["input_ids"][0]
    assert first.convert_ids_to_tokens(ids) == ["[CLS]", "red", "apple", "[UNK]", "[SEP]"]


def test_missing_model_says_how_to_get_it() -> None:
    with pytest.raises(ValueError, match=r"hf download someone/some-model.*HF_HUB_OFFLINE=1.*local folder"):
        load("text", "someone/some-model")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", r"content\.encoder\.text\.model: cannot load /no/such/folder: no such folder"),
        ("package:no_such_package_here", "no Python package no_such_package_here"),
        ("random:huge", "known: tiny-text, xlmr-large"),
    ],
)
def test_bad_references(model: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        load("text", model)


def test_only_safetensors_are_read(bert_folder: Path) -> None:
    weights = transformers.BertModel(transformers.BertConfig(**SMALL)).state_dict()
    (bert_folder / "model.safetensors").unlink()
    torch.save(weights, bert_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Only safetensors are read"):
        load("text", bert_folder)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder"):
        load("text", tmp_path)
