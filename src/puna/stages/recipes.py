"""Finding recipes: by path first, then by name among the recipes that come with the package.

`puna run demo` is `recipes/demo/run.toml` of the package; `puna train demo/pretrain` is `recipes/demo/pretrain.toml`.
"""

import re
from pathlib import Path

import puna
from puna.core import config
from puna.core.errors import MissingError, UsageError
from puna.core.files import atomic_open
from puna.core.nearest import nearest_file

PIPELINE_FILE = "run.toml"
_NAMES_A_FILE = re.compile(r'^(recipe|before) = "([^"/]+)\.toml"$', re.MULTILINE)


def packaged_recipes() -> Path:
    """The folder of the recipes that come with the package (installed, or beside `src/` in a checkout)."""
    package = Path(puna.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent.parent / "recipes"


def find_recipe(text: str | Path) -> Path:
    """The recipe file that a user means.

    Args:
        text: A path, or a name: `demo` (its pipeline) or `demo/pretrain`.

    Raises:
        MissingError: Nothing fits; the nearest names are told.
    """
    given = Path(text)
    for base in (Path(), packaged_recipes()):
        for candidate in (base / given, base / f"{given}.toml", base / given / PIPELINE_FILE):
            if candidate.is_file():
                return candidate
    known = recipe_names()
    siblings = [str(p) for p in given.parent.glob("*.toml")] if given.parent.is_dir() else []
    near = nearest_file(str(given), [*known, *siblings])
    hint = f" Did you mean {near}?" if near else " `puna recipes ls` lists those that come with puna."
    if "=" in given.name:
        hint = " The recipe comes first, then key=value."
    raise MissingError(f"recipe {given} is not there.{hint}")


def copy_recipe(name: str, destination: Path, *, force: bool = False) -> Path:
    """Copy a recipe, with its header. What it names of the files beside it, it names in full: the copy finds them too.

    Args:
        name: As `find_recipe` takes it.
        destination: A file, or a folder: one that exists, or a path that does not end with `.toml`.
        force: Overwrite.

    Returns:
        The file that was written.

    Raises:
        UsageError: Something is there and `force` is not set.
        MissingError: There is no such recipe, or no folder for the file.
    """
    source = find_recipe(name)
    target = destination if destination.suffix == ".toml" and not destination.is_dir() else destination / source.name
    if target == destination and not target.parent.is_dir():
        raise MissingError(f"the folder {target.parent} is not there. Make it, or name one that is there.")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already. Choose another name, or overwrite it with --force.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(target) as file:
        file.write(_NAMES_A_FILE.sub(lambda match: _in_full(source, match), config.read_text(source)))
    return target


def _in_full(source: Path, match: re.Match[str]) -> str:
    key, stem = match.groups()
    named = source.parent / f"{stem}.toml"
    if not named.is_file():
        return match.group()
    home, whole = packaged_recipes().resolve(), named.resolve()
    told = whole.relative_to(home).with_suffix("").as_posix() if whole.is_relative_to(home) else as_typed(named)
    return f'{key} = "{told}"'


def recipe_names() -> list[str]:
    """Names under which the packaged recipes can be called."""
    home = packaged_recipes()
    names = {path.relative_to(home).with_suffix("").as_posix() for path in home.rglob("*.toml")}
    pipelines = {name.removesuffix("/run") for name in names if name.endswith("/run")}
    return sorted(names | pipelines)


def as_typed(path: Path) -> str:
    """How a user would type this recipe: relative to the working directory, or by its name in the package."""
    absolute, here = path.resolve(), Path.cwd()
    if absolute.is_relative_to(here):
        return absolute.relative_to(here).as_posix()
    home = packaged_recipes().resolve()
    if absolute.is_relative_to(home):
        return absolute.relative_to(home).with_suffix("").as_posix()
    return str(path)
