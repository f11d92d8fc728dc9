"""Embeds texts with a pretrained encoder, used as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mtmh.config import BackboneConfig, ContentConfig
from mtmh.content.backbones import load_backbone
from mtmh.content.inputs import tokenize
from mtmh.data.arrays import unit_rows


class TextTeacher:
    """The teacher of ``content.kind = transformers``.

    Args:
        config: ``model``, ``max_tokens`` and ``batch_size``.
        words: texts from which a ``random:`` encoder takes its vocabulary; called only then.
        device: where it computes.

    Attributes:
        dim: width ``Dc`` of its embeddings.

    Raises:
        ValueError: there is no such model; the message says how to get it.
    """

    def __init__(self, config: ContentConfig, words: Callable[[], Iterable[str]], device: torch.device) -> None:
        assert config.model is not None
        backbone = load_backbone("text", BackboneConfig(model=config.model), "content", words)
        self._config = config
        self._tokenizer = backbone.preprocessor
        self._max_tokens = min(config.max_tokens, self._tokenizer.model_max_length)
        self._device = device
        self._encoder = backbone.encoder.to(self._device).eval()
        self.dim: int = backbone.encoder.width

    @torch.inference_mode()
    def embed(
        self, texts: pa.Array, first_row: int = 0
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Embeds texts in batches.

        Args:
            texts: strings; null and empty ones are passed over.
            first_row: number of the first of them, for messages.

        Yields:
            rows [B] of ``texts``, and their embeddings [B, Dc] of unit length.

        Raises:
            ValueError: an embedding is not finite.
        """
        trimmed = pc.utf8_trim_whitespace(texts)
        lengths = np.asarray(pc.fill_null(pc.utf8_length(trimmed), 0), np.int64)
        # Texts of like length share a batch, so that little is padding. The longest come first: a lack of memory shows
        # at once.
        order = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
        for start in range(0, len(order), self._config.batch_size):
            rows = order[start : start + self._config.batch_size]
            ids, mask = tokenize(self._tokenizer, trimmed.take(pa.array(rows)).to_pylist(), self._max_tokens)
            pooled = self._encoder(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).cpu().numpy()
            if not np.isfinite(pooled).all():
                raise ValueError(
                    f"content.model {self._config.model}: not finite numbers for the text in row {first_row + rows[0]}"
                )
            yield rows, unit_rows(pooled)
