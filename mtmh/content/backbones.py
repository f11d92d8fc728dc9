"""Pretrained text and image encoders by name, with the tokenizer or image processor and the pooling they ask for."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers.utils import cached_file

from mtmh.config import BackboneConfig
from mtmh.data.raw_files import stamp
from mtmh.modules import PooledEncoder
from mtmh.modules.content_encoder import Pooling

Modality = Literal["text", "image"]

# Families whose text or image half has a class, and a pooling, of its own; all others go by AutoModel.
_CLASSES: dict[Modality, dict[str, str]] = {
    "text": {
        "clip_text_model": "CLIPTextModelWithProjection",
    },
    "image": {
        "clip_vision_model": "CLIPVisionModelWithProjection",
        "siglip_vision_model": "SiglipVisionModel",
    },
}
# SigLIP's text half reads padding as text, up to a fixed length; SigLIP 2's NaFlex images are no rectangles of pixels.
_UNFIT = ("siglip_text_model", "siglip2_text_model", "siglip2_vision_model")
# ViT checkpoints come without a trained pooler: their classifiers read the state of the first token.
_FIRST_TOKEN = ("vit", "deit")
_SENTENCE_POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_PAD, _UNKNOWN, _BEGIN, _END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_MAX_WORDS = 30_000


@dataclass(frozen=True)
class Backbone:
    """An encoder and what makes its inputs.

    Attributes:
        kind: text or image.
        encoder: the encoder with its pooling.
        preprocessor: a ``transformers`` tokenizer or image processor.
    """

    kind: Modality
    encoder: PooledEncoder
    preprocessor: Any

    def save_description(self, folder: Path) -> None:
        """Writes all but the weights: the model's config and the files of its preprocessor."""
        self.encoder.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        self.preprocessor.save_pretrained(folder)


def load_backbone(kind: Modality, config: BackboneConfig, setting: str, words: Callable[[], Iterable[str]]) -> Backbone:
    """Loads a pretrained encoder; weights from safetensors only.

    Args:
        kind: text or image.
        config: which one.
        setting: name of ``config`` in the recipe, for messages.
        words: texts from which a ``random:`` text encoder takes its vocabulary; called only then.

    Raises:
        ValueError: no such model here, no safetensors, weights missing, or a pooling it does not have; the message
            says how to get it.
    """
    scheme, separator, name = config.model.partition(":")
    if separator and scheme == "random":
        return _random_backbone(kind, name, config, setting, words)
    reference = _reference(config.model, setting)
    try:
        with _quiet():
            model_config = _half(kind, _read_config(reference))
            pooling = _documented_pooling(kind, model_config, reference) if config.pooling == "auto" else config.pooling
            builder, options = _model_class(kind, model_config, pooling, setting)
            model, report = builder.from_pretrained(
                reference,
                config=model_config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype="float32",
                **options,
            )
            preprocessor = _preprocessor(kind, reference)
    except OSError as error:
        raise ValueError(f"{setting}.model: cannot load {config.model}: {_advice(config.model, error)}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(
            f"{setting}.model: {config.model} has no weights for {missing} (pooling {pooling!r}); "
            f"choose another pooling, or a folder that was saved from a {builder.__name__}"
        )
    return Backbone(kind, _pooled(model, pooling, setting), preprocessor)


def stamp_of_model(model: str, setting: str) -> str:
    """Changes with the files of a model that is there, by their names, sizes and times; of ``random:`` there are none.

    Args:
        model: as `BackboneConfig` takes it.
        setting: its name in the recipe, for messages.
    """
    if model.startswith("random:"):
        return ""
    return stamp([Path(cached_file(_reference(model, setting), "config.json")).parent])


def describe_backbone(kind: Modality, folder: Path, pooling: Pooling) -> Backbone:
    """A backbone from what ``save_description`` wrote, at arbitrary weights that the caller then fills."""
    model_config = _read_config(folder)
    builder, options = _model_class(kind, model_config, pooling, str(folder))
    return Backbone(kind, PooledEncoder(builder(model_config, **options), pooling), _preprocessor(kind, folder))


def _read_config(reference: str | Path) -> Any:
    """The description of a model; one that asks for code from elsewhere is refused.

    Raises:
        ValueError: it does.
    """
    config = transformers.AutoConfig.from_pretrained(reference, trust_remote_code=False)
    attention = config._attn_implementation
    if attention is not None and not attention.isidentifier():  # the name of a repository of compiled kernels
        raise ValueError(f"{reference}: its config.json asks for the attention of {attention!r}; refusing to load code")
    return config


def _preprocessor(kind: Modality, reference: str | Path) -> Any:
    # Without a word on this, transformers asks at the terminal whether to run code of the folder.
    if kind == "text":
        return transformers.AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    # The Pillow backend is the one that every machine has, so a teacher sees the same pixels everywhere.
    return transformers.AutoImageProcessor.from_pretrained(reference, backend="pil", trust_remote_code=False)


def _pooled(model: Any, pooling: Pooling, setting: str) -> PooledEncoder:
    try:
        return PooledEncoder(model, pooling)
    except ValueError as error:
        raise ValueError(f"{setting}.pooling: {error}") from None


def _model_class(kind: Modality, config: Any, pooling: Pooling, setting: str) -> tuple[Any, dict[str, Any]]:
    """The class of the encoder, and whether it is to have a pooler, for classes that can do without."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{setting}.model: {config.model_type} is an encoder-decoder; give a plain encoder")
    if config.model_type in _UNFIT:
        raise ValueError(
            f"{setting}.model: {config.model_type} does not take these inputs; give another {kind} encoder"
        )
    own = _CLASSES[kind].get(config.model_type)
    builder = getattr(transformers, own) if own else transformers.MODEL_MAPPING[type(config)]
    has_choice = "add_pooling_layer" in inspect.signature(builder.__init__).parameters
    return builder, {"add_pooling_layer": pooling == "pooler"} if has_choice else {}


def _half(kind: Modality, config: Any) -> Any:
    """The text or image half of a two-tower config, any other config as it is."""
    if config.model_type not in ("clip", "siglip", "siglip2"):
        return config
    half = config.text_config if kind == "text" else config.vision_config
    if config.model_type == "clip":
        # Some checkpoints give the width of the shared space at the top only.
        half.projection_dim = config.projection_dim
    return half


def _documented_pooling(kind: Modality, config: Any, reference: str) -> Pooling:
    """The pooling that the model's own files or documentation ask for."""
    if config.model_type in ("clip_text_model", "clip_vision_model"):
        return "projection"
    if kind == "image":
        return "first" if config.model_type in _FIRST_TOKEN else "pooler"
    path = cached_file(
        reference,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        # The transformers documentation prefers the average over the pooler output of BERT-like models.
        return "mean"
    modes = [name for name, chosen in json.loads(Path(path).read_text()).items() if chosen is True]
    modes = [name for name in modes if name.startswith("pooling_mode_")]
    if len(modes) != 1 or modes[0] not in _SENTENCE_POOLING:
        raise ValueError(f"{path}: pooling {', '.join(modes) or 'unknown'} is not supported; set the pooling instead")
    return _SENTENCE_POOLING[modes[0]]


def _reference(model: str, setting: str) -> str:
    """A folder, or a name on the hub."""
    scheme, _, name = model.partition(":")
    return _package_folder(name, setting) if scheme == "package" and name else model


def _package_folder(name: str, setting: str) -> str:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{setting}.model: no Python package {name} installed; pip install it, or give a folder")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if not folder.is_dir():
        raise ValueError(f"{setting}.model: the package {name} has no folder model ({folder})")
    return str(folder)


def _advice(model: str, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0]
    if "safetensors" in str(error):
        return f"{reason} Only safetensors are read; save the model again with model.save_pretrained(FOLDER)."
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        return "no such folder."
    if Path(model).is_dir():
        return f"{reason} The folder needs config.json, model.safetensors and the tokenizer's or processor's files."
    return (
        f"{reason} Fetch it once where there is network, `hf download {model}` (it then works with HF_HUB_OFFLINE=1), "
        "or give a local folder that holds config.json, model.safetensors and the tokenizer's or processor's files."
    )


def _random_backbone(
    kind: Modality, name: str, config: BackboneConfig, setting: str, words: Callable[[], Iterable[str]]
) -> Backbone:
    """A known architecture at random weights, drawn from PyTorch's generator."""
    known = {"text": ("tiny-text", "xlmr-large"), "image": ("tiny-image", "vit-h14")}[kind]
    if name not in known:
        raise ValueError(f"{setting}.model: no architecture random:{name} for {kind}; known: {', '.join(known)}")
    model_config = _architecture(name)
    if kind == "text":
        preprocessor = _word_tokenizer(words(), model_config.max_position_embeddings - 2)
        if name == "tiny-text":
            model_config.vocab_size = len(preprocessor)
            model_config.pad_token_id = preprocessor.pad_token_id
    else:
        side = model_config.image_size
        preprocessor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    pooling: Pooling = config.pooling if config.pooling != "auto" else ("mean" if kind == "text" else "projection")
    builder, options = _model_class(kind, model_config, pooling, setting)
    return Backbone(kind, _pooled(builder(model_config, **options), pooling, setting), preprocessor)


def _architecture(name: str) -> Any:
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if name == "tiny-text":
        return transformers.BertConfig(max_position_embeddings=130, **tiny, **no_dropout)
    if name == "tiny-image":
        return transformers.CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=64, **tiny)
    if name == "xlmr-large":
        return transformers.XLMRobertaConfig(
            vocab_size=250_002,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
            pad_token_id=1,
        )
    assert name == "vit-h14"
    return transformers.CLIPVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        intermediate_size=5120,
        image_size=224,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )


def _word_tokenizer(texts: Iterable[str], max_tokens: int) -> Any:
    """Lower-case words, the most frequent ones of ``texts``; the same texts give the same numbers."""
    normalizer, splitter = BertNormalizer(), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:_MAX_WORDS]
    vocabulary = [_PAD, _UNKNOWN, _BEGIN, _END, *(word for word in ranked if word not in (_PAD, _UNKNOWN))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=_UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_BEGIN} $A {_END}",
        special_tokens=[(_BEGIN, vocabulary.index(_BEGIN)), (_END, vocabulary.index(_END))],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        cls_token=_BEGIN,
        sep_token=_END,
        model_max_length=max_tokens,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences reports: transformers lists every weight of the other half of a two-tower checkpoint."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
