"""`puna serve`: an OpenAI-compatible API and a chat page."""

import click

from puna.cli.stage_verb import HELP, examples
from puna.cli.threads import choose_waiting


@click.command(
    "serve",
    context_settings=HELP,
    epilog=examples(
        "puna serve runs/demo/assistant",
        "puna serve runs/demo/assistant --port 8080",
        "puna serve runs/demo/assistant --host 0.0.0.0 --api-key-file key.txt max_waiting=200",
    ),
)
@click.argument("path", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--host", help="Address to listen on; the default can be reached from this machine only.")
@click.option("--port", type=int, help="Port to listen on; 0 takes any free one.")
@click.option("--api-key-file", type=click.Path(), help="File with the key that every request must bring.")
@click.option("--base", type=click.Path(), help="Base of an adapter, where it is not found by itself.")
@click.option("--settings", is_flag=True, help="Print every setting that KEY=VALUE can change, and end.")
def command(
    path: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    api_key_file: str | None,
    base: str | None,
    settings: bool,
) -> None:
    """Serve a model: OpenAI-compatible API and a chat page.

    PATH is a run folder, a Hugging Face folder or an adapter. The page is at /, the API at /v1. Ctrl-C lets
    running answers end.
    """
    choose_waiting()
    from puna.cli.fields import show_fields
    from puna.core import config, console
    from puna.serve.config import ServeConfig

    given = [f"{key}={value}" for key, value in (("host", host), ("port", port)) if value is not None]
    resolved = config.load(ServeConfig, None, [*overrides, *given])
    if settings:
        show_fields("settings of `puna serve`", config.describe(resolved))
        return

    from puna.serve.server import listen, serve

    chosen = resolved.config
    if api_key_file:
        from puna.serve.keys import read_key

        chosen = ServeConfig.model_validate({**chosen.model_dump(), "api_key": read_key(api_key_file)})
    if not chosen.api_key and chosen.host not in ("127.0.0.1", "::1", "localhost"):
        console.warn(f"anyone who reaches {chosen.host} can use this model. Give --api-key-file FILE to ask for a key.")
    listener = listen(chosen)  # before torch and the model are loaded: a port in use is told at once
    with listener.socket:
        from puna.infer.engine import Engine

        serve(Engine.load(path, base=base), listener=listener, config=chosen)
