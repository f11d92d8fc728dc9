"""Makes the encoder's inputs of items: texts to tokens, images to pixels, what is missing or broken counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtmh.content.backbones import Backbone
from mtmh.content.images import ImageStore, decode, is_blank
from mtmh.modules import ContentInputs

_DECODERS = 4  # Pillow lets go of the interpreter while it decodes


@dataclass(frozen=True)
class ReadItems:
    """The inputs of some items.

    Attributes:
        inputs: for the encoder.
        has_content: [B] bool, whether there is a text or an image.
        complete: [B] bool, whether there is all that the encoder takes.
        counts: ``empty_texts``, ``missing_images``, ``broken_images``, ``blank_images``, ``without_content``.
        broken: [.] item indices of the broken images.
    """

    inputs: ContentInputs
    has_content: npt.NDArray[np.bool_]
    complete: npt.NDArray[np.bool_]
    counts: Counter[str]
    broken: npt.NDArray[np.int64]


class ItemReader:
    """Reads items for an encoder.

    Args:
        texts: [I] strings of the items, null: none; needed with ``text``.
        text: the text encoder, if the teacher has one.
        image: the image encoder, if the teacher has one.
        images: where the images are; needed with ``image``.
        max_tokens: longer texts are cut.
    """

    def __init__(
        self,
        texts: pa.Array | None,
        text: Backbone | None,
        image: Backbone | None,
        images: ImageStore | None,
        max_tokens: int,
    ) -> None:
        assert (image is None) == (images is None)
        assert (text is None) == (texts is None)
        self._tokenizer = text.preprocessor if text else None
        self._processor = image.preprocessor if image else None
        self._images = images
        self._texts = texts
        self._max_tokens = max_tokens
        self._decoders = ThreadPoolExecutor(_DECODERS)

    def text_lengths(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[B] characters of the items' texts, to put items of like length together; 0 without texts."""
        if self._texts is None:
            return np.zeros(len(items), np.int64)
        lengths = pc.fill_null(pc.utf8_length(self._texts.take(pa.array(items))), 0)
        return np.asarray(lengths, np.int64)

    def read(self, items: npt.NDArray[np.int64]) -> ReadItems:
        """Inputs of the items [B], given by index."""
        counts: Counter[str] = Counter()
        token_ids = token_mask = torch.empty(0, 0, dtype=torch.int64)
        text_rows = image_rows = broken = np.empty(0, np.int64)
        pixels = torch.empty(0, 3, 1, 1)
        if self._texts is not None:
            texts = pc.utf8_trim_whitespace(self._texts.take(pa.array(items)).cast(pa.string()))
            text_rows = np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(texts, ""), False)))
            counts["empty_texts"] = len(items) - len(text_rows)
            if len(text_rows):
                present = texts.take(pa.array(text_rows)).to_pylist()
                token_ids, token_mask = tokenize(self._tokenizer, present, self._max_tokens)
        if self._images is not None:
            files = self._images.read(items.tolist())
            named = np.array([file is not None for file in files], bool)
            pictures = list(self._decoders.map(lambda file: None if file is None else decode(file), files))
            image_rows = np.flatnonzero(np.array([picture is not None for picture in pictures], bool))
            broken = np.setdiff1d(np.flatnonzero(named), image_rows)
            counts["missing_images"] = int((~named).sum())
            counts["broken_images"] = len(broken)
            if len(image_rows):
                assert self._processor is not None
                shown = [picture for picture in pictures if picture is not None]
                counts["blank_images"] = sum(map(is_blank, shown))
                pixels = self._processor(images=shown, return_tensors="pt")["pixel_values"]
        has_text, has_image = np.zeros((2, len(items)), bool)
        has_text[text_rows] = True
        has_image[image_rows] = True
        has_content = has_text | has_image
        complete = (has_text | (self._texts is None)) & (has_image | (self._images is None))
        counts["without_content"] = int((~has_content).sum())
        inputs = ContentInputs(
            num_rows=len(items),
            token_ids=token_ids,
            token_mask=token_mask,
            text_rows=torch.from_numpy(text_rows),
            pixels=pixels,
            image_rows=torch.from_numpy(image_rows),
        )
        return ReadItems(inputs, has_content, complete, counts, items[broken])


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask [T, L] int64 of texts, padded to the longest."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]
