"""Writes `docs/reference/generated/`: the command line, the recipe fields and the Python interface, from the source.

Help pages come from the click commands, recipe fields from the config classes, the Python interface from the syntax
tree (nothing heavy is imported, so the build is quick). Docstrings are Markdown with Google sections; each object
becomes a directive of Sphinx's Python domain, so it can be searched and linked.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from sphinx.application import Sphinx

from puna.cli.main import VERBS, cli
from puna.core.config import Config
from puna.stages.pipeline import PipelineRecipe
from puna.stages.stage import STAGES, find_stage

DOCS = Path(__file__).parents[1]
SOURCE = DOCS.parent / "src" / "puna"
GENERATED = DOCS / "reference" / "generated"
HELP_WIDTH = 88
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "Source", "Differs", "Example", "Examples", "Note")

ROOMS = {
    "core": "errors, recipes, console, files, run folders, dialogs, the generator protocol",
    "tokenizer": "byte-level BPE, its training, the chat format",
    "lineage": "who made which artifact from what",
    "exercises": "seeded, checkable tasks",
    "sandbox": "programs that a model wrote, run against tests behind walls",
    "model": "the transformer, its sizes, its layout for packed documents, its cache",
    "evaluate": "tasks and scores with intervals",
    "data": "sources, filters, shards, the loader",
    "scaling": "laws fitted on small runs",
    "checkpoint": "models as folders that other tools open",
    "planner": "time and memory of a training layout, by arithmetic; the search over layouts",
    "serve": "the OpenAI-compatible server and the terminal chat",
    "train": "the one training loop",
    "infer": "sampling and the engine",
    "post": "dialogs, SFT, DPO",
    "stages": "rooms bound into lineage steps",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write_all())
    return {"version": "1", "parallel_read_safe": True}


def write_all() -> None:
    """Write every generated page."""
    GENERATED.mkdir(parents=True, exist_ok=True)
    pages = {"cli": cli_page(), "recipes": recipes_page()}
    pages.update({f"api-{room}": room_page(room, idea) for room, idea in ROOMS.items()})
    for old in GENERATED.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = GENERATED / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def cli_page() -> str:
    """Every verb with its help page."""
    parts = ["# Command line", "", "What `puna --help` and `puna VERB --help` print.", "", *_help("puna", cli, None)]
    for verb in VERBS:
        parent = click.Context(cli, info_name="puna")
        command = cli.get_command(parent, verb)
        assert command is not None
        parts += _commands(verb, command, parent)
    return "\n".join(parts) + "\n"


def _commands(name: str, command: click.Command, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    parts = _help(context.command_path, command, parent)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            parts += _commands(child, found, context)
    return parts


def _help(path: str, command: click.Command, parent: click.Context | None) -> list[str]:
    context = click.Context(command, info_name=path.split()[-1], parent=parent, terminal_width=HELP_WIDTH)
    return [f"## {path}", "", "```text", command.get_help(context).rstrip(), "```", ""]


def recipes_page() -> str:
    """Every field of every stage's recipe."""
    parts = [
        "# Recipe fields",
        "",
        "Fields of every stage's recipe with type, default and meaning. `puna show RECIPE` prints the same for one "
        "recipe, with the values that it sets.",
        "",
    ]
    for verb, schema in [("run", PipelineRecipe), *((verb, find_stage(verb).recipe) for verb in STAGES)]:
        parts += [f"## puna {verb}", "", _paragraph(schema.__doc__), ""]
        parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [f"| {' | '.join(map(_cell, row))} |" for row in _fields(schema, "")]
        parts.append("")
    return "\n".join(parts) + "\n"


def _fields(schema: type[Config], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.model_fields.items():
        inner = _configs_in(field.annotation)
        default = "" if field.is_required() or inner else f"`{field.get_default(call_default_factory=True)!r}`"
        if field.is_required():
            default = "must be given"
        kind = f"one of: {', '.join(map(_label, inner))}" if len(inner) > 1 else f"`{_type(field.annotation)}`"
        yield f"`{prefix}{name}`", kind, default, _paragraph(field.description)
        for model in inner:
            many = "" if field.annotation is model else ".N"
            which = f"({_label(model)})" if len(inner) > 1 else ""
            yield from _fields(model, f"{prefix}{name}{many}{which}.")


def _label(model: type[Config]) -> str:
    """How a recipe picks this one among others: by its `kind`, where it has one."""
    kind = model.model_fields.get("kind")
    return str(kind.default) if kind else model.__name__


def _configs_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [model for part in get_args(annotation) for model in _configs_in(part)]


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"\b(typing|pathlib|collections\.abc|puna(\.\w+)+)\.", "", text).split(", FieldInfo")[0]


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def room_page(room: str, idea: str) -> str:
    """The Python interface of one room."""
    parts = [f"# puna.{room}", "", f"{idea[:1].upper()}{idea[1:]}.", ""]
    for path in sorted((SOURCE / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(["puna", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        parts += [f"## {module}", "", f"```{{py:module}} {module}", "```", ""]
        parts += [ast.get_docstring(tree) or "", ""]
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                parts += [*_object(node, method=False), ""]
    return "\n".join(parts) + "\n"


def _object(node: ast.FunctionDef | ast.ClassDef, *, method: bool) -> list[str]:
    body = _body(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        kind = "py:method" if method else "py:function"
        return _directive(kind, f"{node.name}{_signature(node)}", body)
    bases = f"({', '.join(ast.unparse(base) for base in node.bases)})" if node.bases else ""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            body += ["", *_object(child, method=True)]
    return _directive("py:class", f"{node.name}{bases}", body)


def _directive(kind: str, head: str, body: list[str]) -> list[str]:
    longest = max((len(m.group()) for line in body for m in re.finditer(r":{3,}", line)), default=2)
    fence = ":" * (longest + 1)
    return [f"{fence}{{{kind}}} {head}", "", *body, fence]


def _signature(node: ast.FunctionDef) -> str:
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({arguments}){returns}".replace("\n", " ")


def _body(docstring: str) -> list[str]:
    """Google sections as bold titles with bullet lists; everything else stays Markdown."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        title = re.fullmatch(rf"({'|'.join(SECTIONS)}):(.*)", line)
        if title:
            section = title.group(1)
            lines += ["", f"**{section}**{title.group(2)}", ""]
        elif line and not line.startswith(" "):
            section = ""
            lines.append(line)
        elif section in {"Args", "Attributes", "Raises"}:
            entry = re.match(r" {4}(\*{0,2}[\w.]+)( \([^)]*\))?: ?(.*)", line)
            lines.append(
                f"- `{entry.group(1)}`: {entry.group(3)}" if entry else f"  {line.strip()}" if line.strip() else ""
            )
        else:
            lines.append(line[4:] if section else line)
    return lines
