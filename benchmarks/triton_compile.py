"""Compiles the Triton kernels of the losses for GPUs that need not be there, and tells what becomes of each.

Every kernel with all that it can do: hits, a teacher, and negatives that the teacher cannot judge. Registers are those
of a thread; ``spilled`` are bytes of a thread in local memory; ``CTAs`` are the programs that fit on a multiprocessor
at the same time, by registers, shared memory and threads.

    python -m benchmarks.triton_compile --products bfloat16 --width 128 --teacher-width 192 --out compiled.json
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from mtmh.modules.losses import triton as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.compare import made_by

# Of a multiprocessor: 32-bit registers, bytes of shared memory (of which each program takes 1 KiB more than it asks
# for), threads. CUDA C++ Programming Guide, table of technical specifications.
MULTIPROCESSORS = {80: (65_536, 164 * 1024, 2048), 86: (65_536, 100 * 1024, 1536), 90: (65_536, 228 * 1024, 2048)}
MOST_SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}  # bytes of a program
KERNELS = ("similar", "teacher", "statistics", "trigger gradient", "negative gradient")
INTEGERS = ("num_splits", "tiles_of_split", "num_rows", "num_negatives")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU.

    Attributes:
        kernel: its name.
        capability: of the GPU, 80, 86 or 90.
        tile: rows x negatives x width at a time.
        warps: of a program.
        registers: of a thread.
        spilled: bytes of a thread.
        shared: bytes of a program.
        programs: at the same time on a multiprocessor.
    """

    kernel: str
    capability: int
    tile: str
    warps: int
    registers: int
    spilled: int
    shared: int
    programs: int


def compile_kernel(
    name: str, capability: int, bf16: bool, width: int, teacher_width: int, tiles: kernels.Tiles | None = None
) -> Any:
    """Compiles one of ``KERNELS``, as the pass launches it where there are a multiple of 16 rows."""
    tiles = tiles or kernels.tiles_of(capability, bf16)
    kernel, tile, depth = {
        "similar": (kernels._similar_kernel, tiles.similar, teacher_width),
        "teacher": (kernels._teacher_kernel, tiles.teacher, teacher_width),
        "statistics": (kernels._statistics_kernel, tiles.statistics, width),
        "trigger gradient": (kernels._trigger_gradient_kernel, tiles.of_trigger, width),
        "negative gradient": (kernels._negative_gradient_kernel, tiles.of_negative, width),
    }[name]
    constants: dict[str, Any] = {
        "WIDTH": depth,
        "LABEL_TILE": kernels.LABEL_TILE,
        "HITS": True,
        "DISTILS": True,
        "ALL_JUDGED": False,
        "BLOCK_M": tile.rows,
        "BLOCK_L": tile.negatives,
        "BLOCK_K": min(tile.width, kernels._power_of_2(depth)),
        "BLOCK_OUT": min(kernels.BLOCK_OUT, kernels._power_of_2(width)),
        "PRECISION": "tf32" if bf16 else "tf32x3",
    }
    factor = "*bf16" if bf16 and name != "similar" else "*fp32"
    types = dict.fromkeys(INTEGERS, "i32") | {"threshold": "fp32", "bits": "*i32", "no_content": "*i8"}
    types |= dict.fromkeys(("trigger", "negative", "labels"), factor)
    known = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: "constexpr" if key in known else types.get(key, "*fp32") for key in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, key in enumerate(signature)
        if signature[key].startswith("*") or key == "num_rows"
    }
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def measure(name: str, capability: int, bf16: bool, width: int, teacher_width: int, tiles: kernels.Tiles) -> Compiled:
    """Compiles a kernel and reads its use of a multiprocessor."""
    compiled = compile_kernel(name, capability, bf16, width, teacher_width, tiles)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, spilled = map(int, found.groups())
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    all_registers, all_shared, all_threads = MULTIPROCESSORS[capability]
    # Registers are given out to warps, 256 at a time.
    of_warp = -(-32 * registers // 256) * 256
    programs = min(all_registers // (of_warp * warps), all_shared // (shared + 1024), all_threads // (32 * warps))
    tile = dict(zip(KERNELS, tiles, strict=True))[name]
    return Compiled(
        name,
        capability,
        f"{tile.rows} x {tile.negatives} x {tile.width}",
        warps,
        registers,
        spilled,
        shared,
        programs,
    )


def main() -> None:
    """Compiles all, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=sorted(MULTIPROCESSORS), default=[80, 90])
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--products", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--width", type=int, default=128, help="of the embeddings")
    parser.add_argument("--teacher-width", type=int, default=192)
    parser.add_argument("--tile", type=int, nargs=3, help="rows, negatives, width; default: as the pass takes them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(f"| GPU | kernel ({args.products}) | tile | warps | registers | spilled | shared, KB | CTAs |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    results = []
    bf16 = args.products == "bfloat16"
    for capability in args.capability:
        tiles = kernels.tiles_of(capability, bf16)
        if args.tile:
            rows, negatives, depth = args.tile
            tile = kernels.Tile(rows, negatives, depth, num_warps=8, num_stages=2)
            tiles = kernels.Tiles(tile, tile, tile, tile, tile)
        for name in args.kernel:
            row = measure(name, capability, bf16, args.width, args.teacher_width, tiles)
            results.append(asdict(row))
            print(
                f"| sm_{capability} | {name} | {row.tile} | {row.warps} | {row.registers} | {row.spilled} |"
                f" {row.shared / 1024:.0f} | {row.programs} |",
                flush=True,
            )
    if args.out:
        settings = {"products": args.products, "width": args.width, "teacher_width": args.teacher_width}
        report = {"command": made_by(), "triton": triton.__version__, "settings": settings, "results": results}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
