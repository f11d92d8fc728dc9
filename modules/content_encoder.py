"""The teacher's network: a content tower that fuses text and image, against a concept tower (MTMH paper, section 3.4).

Both towers end in unit vectors of one space. The content tower takes the text and the image of an item through an
encoder each and fuses the two by an MLP; the concept tower takes a short text (a hashtag, a search query, a tag)
through the same text encoder or one of its own, then through its own MLP. Trained against each other, the content
tower alone is what the teacher needs afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from .heads import HeadMLP

Pooling = Literal["mean", "first", "last", "pooler", "projection"]


@dataclass(frozen=True)
class ContentInputs:
    """Texts and images of ``B`` items, only those that are there.

    Attributes:
        num_rows: ``B``.
        token_ids: ``[T, L]`` int64, the texts, padded.
        token_mask: ``[T, L]`` int64, 1 where there is a token, 0 in the padding.
        text_rows: ``[T]`` int64, the row of each text, distinct.
        pixels: ``[P, 3, H, W]`` float32, the images as their encoder's processor makes them.
        image_rows: ``[P]`` int64, the row of each image, distinct.
    """

    num_rows: int
    token_ids: Tensor
    token_mask: Tensor
    text_rows: Tensor
    pixels: Tensor
    image_rows: Tensor

    def to(self, device: torch.device) -> Self:
        """A copy on ``device``."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "num_rows"}
        return replace(self, **moved)

    def without(self, *, text: Tensor | None = None, image: Tensor | None = None) -> Self:
        """A copy in which some rows lose their text or their image.

        Args:
            text: ``[B]`` bool, rows that lose their text.
            image: ``[B]`` bool, rows that lose their image.
        """
        kept = self
        if text is not None:
            keep = ~text[self.text_rows]
            kept = replace(
                kept,
                token_ids=self.token_ids[keep],
                token_mask=self.token_mask[keep],
                text_rows=self.text_rows[keep],
            )
        if image is not None:
            keep = ~image[self.image_rows]
            kept = replace(kept, pixels=self.pixels[keep], image_rows=self.image_rows[keep])
        return kept


class PooledEncoder(nn.Module):
    """A ``transformers`` encoder, and how its output becomes one vector.

    Which pooling is right is a property of the encoder, said by its documentation: ``mean`` of the tokens' last hidden
    states (padding left out), the ``first`` token ([CLS], <s>), the ``last`` token (language models), the model's own
    ``pooler`` output, or the ``projection`` into the space of the other modality (CLIP's text_embeds, image_embeds).

    Args:
        model: the encoder.
        pooling: as above.

    Raises:
        ValueError: the model has no such output.

    Example::

        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> encoder = PooledEncoder(BertModel(config, add_pooling_layer=False), "mean")
        >>> tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
        >>> encoder(input_ids=tokens, attention_mask=(tokens > 0).long()).shape, encoder.width
        (torch.Size([2, 8]), 8)
    """

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.width = _width(model, pooling)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Encodes tokens or pixels.

        Args:
            inputs: what the model takes by name: ``input_ids`` and ``attention_mask`` ``[B, L]`` int64, or
                ``pixel_values`` ``[B, 3, H, W]``.

        Returns:
            ``[B, width]``, float32 or wider, under autocast too.
        """
        output = self.model(**inputs)
        pooled = _pool(output, self.pooling, inputs.get("attention_mask"))
        return pooled.to(torch.promote_types(pooled.dtype, torch.float32))


class ContentEncoder(nn.Module):
    """The two towers.

    A missing text or image is replaced by a learned vector, so that every item has an embedding and the fusion knows
    what it does not see. What each encoder gives passes a layer norm first: pretrained encoders differ in scale by
    orders of magnitude, and without it the louder one drowns the other.

    Args:
        text: encoder of the items' texts; ``None``: texts are ignored.
        image: encoder of the items' images; ``None``: images are ignored.
        concept: encoder of the concepts; ``None``: ``text`` encodes them too.
        hidden: widths of the hidden layers of the fusion MLP and of the concept tower's MLP.
        dim: width ``D`` of the embeddings; 128 in the paper.

    Raises:
        ValueError: no encoder for the content, or none for the concepts.

    Example::

        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> text = PooledEncoder(BertModel(config, add_pooling_layer=False), "mean")
        >>> encoder = ContentEncoder(text, image=None, concept=None, hidden=[16], dim=4)
        >>> tokens, none = torch.tensor([[1, 2], [3, 4]]), torch.empty(0, 3, 1, 1)
        >>> inputs = ContentInputs(3, tokens, torch.ones_like(tokens), torch.tensor([0, 2]), none, torch.tensor([]))
        >>> encoder.embed_content(inputs).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        text: PooledEncoder | None,
        image: PooledEncoder | None,
        concept: PooledEncoder | None,
        *,
        hidden: list[int],
        dim: int,
    ) -> None:
        super().__init__()
        if text is None and image is None:
            raise ValueError("a content encoder needs a text encoder, an image encoder or both")
        concept_encoder = concept or text
        if concept_encoder is None:
            raise ValueError("concepts are texts: without a text encoder the concept tower needs one of its own")
        self.text = text
        self.image = image
        self.concept = concept
        self.text_features = _Features(text.width) if text is not None else None
        self.image_features = _Features(image.width) if image is not None else None
        self.concept_norm = nn.LayerNorm(concept_encoder.width)
        fused_width = sum(encoder.width for encoder in (text, image) if encoder is not None)
        self.fusion = HeadMLP(fused_width, hidden, dim, normalize=True)
        self.concept_head = HeadMLP(concept_encoder.width, hidden, dim, normalize=True)

    def embed_content(self, inputs: ContentInputs) -> Tensor:
        """Embeds items: ``[B, D]`` of unit length, those with neither text nor image too (all alike)."""
        parts = []
        if self.text is not None and self.text_features is not None:
            encoded = None
            if len(inputs.text_rows):
                encoded = self.text(input_ids=inputs.token_ids, attention_mask=inputs.token_mask)
            parts.append(self.text_features(encoded, inputs.text_rows, inputs.num_rows))
        if self.image is not None and self.image_features is not None:
            encoded = self.image(pixel_values=inputs.pixels) if len(inputs.image_rows) else None
            parts.append(self.image_features(encoded, inputs.image_rows, inputs.num_rows))
        return cast(Tensor, self.fusion(torch.cat(parts, dim=1)))

    def embed_concepts(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Embeds concepts, ``[C, L]`` int64 tokens and their mask, to ``[C, D]`` of unit length."""
        encoder = self.concept or self.text
        assert encoder is not None
        encoded = encoder(input_ids=token_ids, attention_mask=token_mask)
        return cast(Tensor, self.concept_head(self.concept_norm(encoded)))

    def forward(self, inputs: ContentInputs, concept_ids: Tensor, concept_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both towers at once, as wrappers of a training step want it: ``[B, D]`` contents and ``[C, D]`` concepts."""
        return self.embed_content(inputs), self.embed_concepts(concept_ids, concept_mask)


class _Features(nn.Module):
    """Inputs of the fusion from one modality: normed features, or the learned stand-in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, encoded: Tensor | None, rows: Tensor, num_rows: int) -> Tensor:
        """``[B, width]`` from the encoder's output ``[P, width]`` and the row of each."""
        features = self.missing.expand(num_rows, -1)
        if encoded is None:
            return features
        normed = self.norm(encoded)
        return features.to(normed.dtype).index_copy(0, rows, normed)


def _pool(output: Any, pooling: Pooling, mask: Tensor | None) -> Tensor:
    if pooling == "projection":
        projected = output.get("text_embeds")
        return cast(Tensor, output["image_embeds"] if projected is None else projected)
    if pooling == "pooler":
        # Convolutional encoders give [B, width, 1, 1].
        return cast(Tensor, output["pooler_output"]).flatten(1)
    states = cast(Tensor, output["last_hidden_state"])
    if pooling == "first":
        return states[:, 0]
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if mask is None:
        return states.mean(dim=1) if pooling == "mean" else states[:, -1]
    if pooling == "mean":
        weights = mask.to(states.dtype)
        return (states * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
    # Padding may be on either side: the last token is the last one the mask keeps.
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


def _width(model: nn.Module, pooling: Pooling) -> int:
    config = cast(Any, model).config
    name = "projection_dim" if pooling == "projection" else "hidden_size"
    width = getattr(config, name, None)
    if width is None and pooling == "pooler":
        # Convolutional encoders have one width a stage.
        width = (getattr(config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        raise ValueError(f"{type(model).__name__} cannot be pooled by {pooling!r}: its config has no {name}")
    return width
