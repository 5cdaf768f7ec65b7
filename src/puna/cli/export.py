"""`puna export`: a model in the layout that another tool reads."""

import click

from puna.cli.stage_verb import HELP, examples


@click.group(
    "export",
    context_settings=HELP,
    epilog=examples(
        "puna export hf runs/demo/assistant exported/assistant",
        "puna export meta runs/demo/assistant exported/assistant-meta",
    ),
)
def command() -> None:
    """Write a model in another format.

    The source is a run folder, a Hugging Face folder, Meta's layout or an adapter; it is only read.
    """


def _refuse_used_folder(out: str) -> None:
    from pathlib import Path

    from puna.core.errors import UsageError

    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{out} is there already and not an empty folder; choose another one. Nothing was written.")


@command.command(
    "hf",
    context_settings=HELP,
    epilog=examples(
        "puna export hf runs/demo/assistant exported/assistant",
        "puna export hf runs/demo/assistant exported/half --dtype bfloat16",
        "puna export hf path/to/meta-layout exported/llama --max-shard-gib 5",
        "puna export hf runs/lora exported/merged",
    ),
)
@click.argument("path", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights; else unchanged.")
@click.option("--max-shard-gib", default=5.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--base", type=click.Path(), help="Base of an adapter, where it is not found by itself.")
def hf_command(path: str, out: str, dtype: str | None, max_shard_gib: float, base: str | None) -> None:
    """Write a Hugging Face folder.

    Safetensors, sharded with an index when large, beside config and tokenizer: what transformers, vLLM and llama.cpp's
    converter read. The model is streamed a few rows at a time, so its size is no matter; a run's newest checkpoint will
    do, in whatever layout it was trained. An adapter is merged into its base.
    """
    _refuse_used_folder(out)
    import torch

    from puna.checkpoint.export import export
    from puna.checkpoint.format import resolve
    from puna.core import console

    if resolve(path).layout == "adapter":
        from puna.checkpoint.merging import export_merged

        kind = getattr(torch, dtype) if dtype else None
        done = export_merged(path, out, base=base, dtype=kind, max_shard_bytes=int(max_shard_gib * 2**30))
        console.say(
            f"{out} is written: {done.config.parameters():,} parameters, {done.matrices} matrices merged; the largest "
            f"rounding of a merged weight is {done.rounding:.3g}"
        )
        return
    config = export(
        path, out, dtype=getattr(torch, dtype) if dtype else None, max_shard_bytes=int(max_shard_gib * 2**30)
    )
    console.say(f"{out} is written: {config.parameters():,} parameters")


@command.command(
    "meta", context_settings=HELP, epilog=examples("puna export meta runs/demo/assistant exported/assistant-meta")
)
@click.argument("path", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights; else unchanged.")
def meta_command(path: str, out: str, dtype: str | None) -> None:
    """Write Meta's layout.

    params.json, consolidated.00.pth and tokenizer.model, as Meta ships Llama.
    """
    _refuse_used_folder(out)
    import torch

    from puna.checkpoint.format import load_model, load_tokenizer
    from puna.checkpoint.meta import save_meta
    from puna.core import console

    model, config = load_model(path, dtype=getattr(torch, dtype) if dtype else None)
    save_meta(out, model, config, tokenizer=load_tokenizer(path))
    console.say(f"{out} is written: {config.parameters():,} parameters")
