"""`puna doctor`: what this machine can do, and what is missing."""

import click

from puna.cli.stage_verb import HELP, examples

EXTRAS = {
    "data": ("fastwarc", "resiliparse", "pyarrow", "py3langid", "pathspec"),
    "trafilatura": ("trafilatura",),
    "cluster": ("ray",),
    "serve": ("fastapi", "uvicorn"),
    "annotate": ("sqlalchemy", "alembic", "scipy"),
    "sentencepiece": ("sentencepiece",),
    "tracking": ("tensorboard", "wandb"),
    "docs": ("sphinx", "myst_parser", "furo"),
}
"""Modules of each extra in pyproject.toml that a user may want."""


@click.command("doctor", context_settings=HELP, epilog=examples("puna doctor", "puna doctor --quick"))
@click.option("--quick", is_flag=True, help="Leave out what is measured and tried out.")
def command(quick: bool) -> None:
    """Say what this machine can do and what is missing.

    Python, torch, device, threads, memory, disk, the matrix-product rate that it reaches, whether programs that a model
    writes can be run safely (tried out with harmless attacks), and the pip line of every extra that is not installed.
    Changes nothing.
    """
    from puna.core import console

    missing = _missing_extras()
    rows = [*_machine_rows(), *_torch_rows(quick)]
    if not quick:
        from puna.sandbox.self_test import self_test

        rows += self_test()
    rows += [(f"extra {name}", "missing: " + ", ".join(absent) if absent else "ok") for name, absent in missing.items()]
    console.table("", ["what", "value"], rows)
    wanted = [name for name, absent in missing.items() if absent]
    if wanted:
        console.say(f"For what is missing: pip install 'puna[{','.join(wanted)}]'")


def _machine_rows() -> list[tuple[str, str]]:
    import os
    import platform
    import shutil
    import sys

    from puna import __version__
    from puna.core.console import short_bytes

    disk = shutil.disk_usage(".")
    rows = [
        ("puna", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} usable"),
    ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        free = _available_memory()
        total = short_bytes(page * os.sysconf("SC_PHYS_PAGES"))
        rows.append(("memory", f"{total}, {short_bytes(free)} available" if free else total))
    rows.append(("disk here", f"{short_bytes(disk.free)} free of {short_bytes(disk.total)}"))
    return rows


def _available_memory() -> int | None:
    from pathlib import Path

    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _torch_rows(quick: bool) -> list[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        return [("torch", f"missing ({error}); pip install 'torch~=2.13.0'")]
    from puna.core.console import short_bytes

    rows = [("torch", torch.__version__), ("threads", f"{torch.get_num_threads()} (OMP_NUM_THREADS changes it)")]
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            rows.append((f"gpu {index}", f"{facts.name}, {short_bytes(facts.total_memory)}"))
    else:
        rows.append(("gpu", "none; everything runs on the CPU"))
    if not quick:
        rows += [(f"matmul {device}", _matmul_rate(device)) for device in devices]
    return rows


def _matmul_rate(device: str) -> str:
    """Best of several products of fp32 matrices (bf16 on a GPU), in GFLOP/s."""
    import time

    import torch

    size = 1024 if device == "cpu" else 8192
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device=device).manual_seed(0)
    left = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    out = torch.empty_like(left)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(left, left, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    kind = "fp32" if device == "cpu" else "bf16"
    return f"{2 * size**3 / best / 1e9:,.0f} GFLOP/s in {kind} at {size} x {size} x {size}"


def _missing_extras() -> dict[str, list[str]]:
    from importlib.util import find_spec

    return {name: [module for module in modules if find_spec(module) is None] for name, modules in EXTRAS.items()}
