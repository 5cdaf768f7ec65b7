"""`puna chat`: a conversation in the terminal."""

import sys
from pathlib import Path

import click

from puna.cli.stage_verb import HELP, examples
from puna.cli.threads import choose_waiting


@click.command(
    "chat",
    context_settings=HELP,
    epilog=examples(
        "puna chat runs/demo/assistant",
        "puna chat runs/demo/assistant --temperature 0",
        "puna chat path/to/a/hugging-face/folder --system 'Answer in one word.'",
    ),
)
@click.argument("path", type=click.Path())
@click.option("--system", default="", help="System message.")
@click.option("--temperature", default=0.6, show_default=True, type=click.FloatRange(0, 2), help="0: the likeliest.")
@click.option("--top-p", default=0.9, show_default=True, type=click.FloatRange(0, 1), help="Nucleus of the draw.")
@click.option("--top-k", default=0, show_default=True, type=click.IntRange(0), help="Likeliest tokens kept; 0: all.")
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first answer.")
@click.option("--base", type=click.Path(), help="Base of an adapter, where it is not found by itself.")
def command(
    path: str,
    system: str,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    seed: int,
    base: str | None,
) -> None:
    """Talk to a model in the terminal.

    PATH is a run folder, a Hugging Face folder or an adapter. /help in the chat lists its commands; Ctrl-C stops an
    answer, Ctrl-D leaves.
    """
    choose_waiting()
    from puna.checkpoint import card
    from puna.core import console
    from puna.core.generator import Sampling
    from puna.infer.engine import Engine
    from puna.serve.terminal import chat_loop

    engine = Engine.load(path, base=base)
    console.say(f"{engine.name}. /help lists commands, Ctrl-D leaves.")
    if any(card.made_by(folder) in card.PRETRAINED for folder in (Path(path), Path(path) / "model")):
        console.say("It was pretrained, not fine-tuned for dialogs: it goes on with text rather than answers.")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    read_line = input if sys.stdin.isatty() else lambda prompt: input()
    chat_loop(engine, read_line=read_line, write=console.write, sampling=sampling, system=system)
