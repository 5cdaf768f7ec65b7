"""Nothing is claimed in a page that the code does not know: commands parse, recipes fit, links lead somewhere."""

import re
import tomllib

import click
import pytest

from puna.cli.main import VERBS, cli
from puna.stages import recipes, showing
from tests.docs.commands import PAGES, ROOT, blocks, console_lines, links, words_of

LINES = [(block, line) for page in PAGES for block, line in console_lines(page)]
EXAMPLE_LINES: list[tuple[str, str]] = []


def leaves(command, path):
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from leaves(found, [*path, name])
    yield " ".join(path), command


for verb_path, verb_command in leaves(cli, ["puna"]):
    shown = (verb_command.epilog or "").partition("Examples:")[2]
    EXAMPLE_LINES += [(verb_path, line.strip()) for line in shown.splitlines() if line.strip().startswith("puna")]


def check_puna(words):
    """Parse a command as the real one does, and read the recipe that it names with its overrides."""
    context, command = click.Context(cli, info_name="puna"), cli
    rest = words[1:]
    path = []
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        found = command.get_command(context, name)
        if found is None and hasattr(command, "default"):  # a verb whose own recipe may stand in a subcommand's place
            command, rest = command.default, [name, *rest]
            break
        assert found is not None, f"there is no verb {name}"
        path.append(name)
        context = click.Context(found, info_name=name, parent=context)
        command = found
    if {"--help", "--version"} & set(rest):
        return
    parsed = command.make_context(path[-1], list(rest), parent=context.parent)
    recipe = parsed.params.get("recipe")
    if recipe and not recipe.startswith("my-"):
        overrides = parsed.params.get("overrides", ())
        if path == ["run"]:
            from puna.stages.pipeline import plan_pipeline

            plan_pipeline(recipes.find_recipe(recipe), overrides)
        else:
            showing.resolve(
                recipes.find_recipe(recipe),
                overrides,
                None if path in (["show"], ["launch"], ["mix"]) else " ".join(path),
            )


@pytest.mark.parametrize(("block", "line"), LINES, ids=[f"{b}-{i}" for i, (b, _) in enumerate(LINES)])
def test_every_command_in_a_page_is_one_that_the_program_takes(block, line):
    words = words_of(line)
    if words[0] == "puna":
        check_puna(words)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {w for w in words[1:] if "=" not in w} <= set(targets)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in {"pip", "git", "cd", "curl", "open", "cat", "head"}, f"{block}: unknown command {words[0]}"


@pytest.mark.parametrize(("path", "line"), EXAMPLE_LINES, ids=[line for _, line in EXAMPLE_LINES])
def test_every_example_of_a_help_page_is_a_command_that_the_program_takes(path, line):
    assert path in line or path == "puna"
    check_puna(words_of(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in links(page):
        if "generated/" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


TOML_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "toml"]


@pytest.mark.parametrize("block", TOML_BLOCKS, ids=str)
def test_every_recipe_in_a_page_is_a_recipe_of_the_stage_that_its_header_names(block, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(block.text)
    assert showing.verb_of(path), f"{block}: begin the recipe with a comment `# puna VERB ...`"
    showing.resolve(path)


@pytest.mark.parametrize("block", [b for p in PAGES for b in blocks(p) if b.language == "python"], ids=str)
def test_every_python_block_compiles_and_imports_names_that_exist(block):
    code = compile(block.text, str(block), "exec")
    assert code
    for module, names in re.findall(r"^from (puna\S*) import ([\w, ]+)$", block.text, re.MULTILINE):
        imported = __import__(module, fromlist=["x"])
        for name in names.split(","):
            assert hasattr(imported, name.strip())


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"^  ([a-z]+)/ ", text, re.MULTILINE))
    rooms = {p.name for p in (ROOT / "src/puna").iterdir() if (p / "__init__.py").exists()}
    assert shown == rooms
    for folder in re.findall(r"^([a-z]+)/ ", text, re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_every_room_stands_in_the_architecture_and_in_the_reference():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    generator = (ROOT / "docs/_ext/reference_pages.py").read_text()
    for room in (p.name for p in (ROOT / "src/puna").iterdir() if (p / "__init__.py").exists()):
        assert re.search(rf"^ .*\b{room}\b", text, re.MULTILINE), room
        assert room == "cli" or f'"{room}":' in generator


def test_every_benchmark_is_listed_and_takes_quick_and_json():
    listed = (ROOT / "benchmarks/README.md").read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        text = script.read_text()
        assert f"`{script.name}`" in listed
        assert '"--quick"' in text, script.name
        assert '"--json"' in text, script.name


RECIPES = sorted(recipes.packaged_recipes().rglob("*.toml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_packaged_recipe_is_short_has_a_header_and_fits_its_stage(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40 or path.name == recipes.PIPELINE_FILE
    assert text.startswith("# ")
    assert tomllib.loads(text)
    showing.resolve(path)


def test_the_verbs_in_the_changelog_are_the_verbs():
    line = re.search(r"Command line: `([^`]+)`", (ROOT / "CHANGELOG.md").read_text())
    assert line is not None
    assert set(line.group(1).split()) == set(VERBS)
