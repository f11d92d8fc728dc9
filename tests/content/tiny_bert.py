"""A tiny BERT at random weights, as a `transformers` folder."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

WORDS = {"red", "shoe", "blue", "hat", "with", "a", "long", "ribbon", "b", "c"}


def write_bert(folder: Path) -> Path:
    """Writes the folder and returns it."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(WORDS)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder
