"""Typed, frozen recipes: `defaults < recipe.toml < key=value`, every problem found before any work and told together.

A config class derives from `Config`, lives beside its user, and carries a docstring under each field, which `puna show`
prints. A recipe is TOML. An override is `a.b.c=value`, the value read as TOML where it parses and as text elsewhere, so
`name=demo` needs no quotes; for a list of texts one text stands for a list of one; `a.b.c=none` takes away what the
recipe says, back to the default. `load` returns the config and, for every leaf, where its value came from.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from puna.core.errors import ConfigError, MissingError
from puna.core.nearest import hint, nearest, nearest_file


class Config(BaseModel):
    """Base of every config: frozen, unknown keys are errors, field docstrings are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] <= bounds[1]:
        raise ValueError("give two numbers, the lower one first")
    return bounds


def _are_shares(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= bounds[0] <= bounds[1] <= 1.0:
        raise ValueError("give two shares of 0 to 1, the lower one first")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_in_order)]
"""A lower and an upper bound."""
Shares = Annotated[tuple[float, float], AfterValidator(_are_shares)]
"""Bounds within 0 to 1."""

C = TypeVar("C", bound=Config)
_COMMAND_LINE = "command line"

_PLAIN_WORDS = (
    (r"a valid (tuple|list)", "a list"),
    (r"a valid dictionary or instance of \w+|a valid dictionary", "a table"),
    (r"a valid (integer|number|string|boolean)", r"a \1"),
    (r"a integer", "an integer"),
    (r"(?:Tuple|List) should have at least (\d+) items? after validation, not \d+", r"give at least \1"),
    (r", unable to parse string as an? \w+", ""),
    (r", got a number with a fractional part", ", without a fraction"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
)
"""pydantic's words, in those of a recipe."""


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A checked recipe.

    Attributes:
        config: The config.
        origins: For each dotted leaf key set by somebody: the file, or `command line`. Absent means the default.
    """

    config: C
    origins: dict[str, str]


@dataclass(frozen=True)
class Field:
    """One row of `puna show`."""

    key: str
    value: str
    origin: str
    meaning: str


def load(schema: type[C], recipe: Path | str | None = None, overrides: Sequence[str] = ()) -> Resolved[C]:
    """Read, merge and check a recipe.

    Args:
        schema: The config class.
        recipe: TOML file, or None for defaults alone.
        overrides: `key=value` strings, later ones win.

    Returns:
        The config with the origin of its values.

    Raises:
        MissingError: The recipe file is not there.
        ConfigError: Anything else that is wrong, all of it at once.
    """
    problems: list[str] = []
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    if recipe is not None:
        values = _read_toml(Path(recipe), problems)
        if problems:
            raise ConfigError(problems, title=f"{recipe} cannot be used")
        origins.update({key: str(recipe) for key in _leaves(values)})
    for text in overrides:
        _apply_override(schema, values, origins, text, problems)
    problems += [
        f"{origins.get(key, recipe or 'the settings')}: {key} is {str(value).lower()}: input should be a number"
        for key, value in _flags(values)
        if _is_number(schema, key.split("."))
    ]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        problems += [_explain(detail, schema, origins, recipe) for detail in _without_echoes(error.errors())]
        raise ConfigError(problems, title=f"{recipe or 'the settings'} cannot be used") from None
    if problems:
        raise ConfigError(problems, title=f"{recipe or 'the settings'} cannot be used")
    return Resolved(config, origins)


def _without_echoes(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The errors without lists that are too short only because pydantic does not count their wrong entries."""
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or all(other is detail or other["loc"][: len(detail["loc"])] != detail["loc"] for other in details)
    ]


def read_text(path: Path) -> str:
    """The text of a recipe.

    Raises:
        ConfigError: It is not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = content.count(b"\n", 0, error.start) + 1, error.start - content.rfind(b"\n", 0, error.start)
        problem = f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x} at column {column}; save it as UTF-8"
        raise ConfigError([problem], title=f"{path} cannot be used") from error


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        near = nearest_file(path.name, [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else [])
        meant = f" Did you mean {path.parent / near}?" if near else ""
        raise MissingError(f"recipe {path} is not there.{meant}") from error
    except IsADirectoryError as error:
        raise MissingError(f"recipe {path} is a folder; name a .toml file in it") from error
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: not valid TOML: {error}")
        return {}


def _apply_override(
    schema: type[Config], values: dict[str, Any], origins: dict[str, str], text: str, problems: list[str]
) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        problems.append(f"command line: {text!r} is not an override; write key=value, for example train.steps=100")
        return
    *parents, last = key.split(".")
    node: Any = values
    for name in parents:
        node = _step(node, name)
        if node is None:
            problems.append(f"command line: {key} cannot be set, {name!r} is not a table of the recipe")
            return
    value = _parse_value(raw)
    if raw == "none" and isinstance(node, dict):
        node.pop(last, None)
        for known in [k for k in origins if k == key or k.startswith(f"{key}.")]:
            del origins[known]
        return
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            problems.append(f"command line: {key} cannot be set, the list has {len(node)} entries")
            return
        node[int(last)] = value
    else:
        is_one = isinstance(value, str) and not value.startswith("[")
        node[last] = [value] if is_one and _takes_texts(schema, key.split(".")) else value
    origins[key] = _COMMAND_LINE


def _step(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    child = node.setdefault(name, {})
    return child if isinstance(child, (dict, list)) else None


def _parse_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            for index, entry in enumerate(value):
                if isinstance(entry, Mapping):
                    yield from _leaves(entry, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}"


def _flags(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every true or false with its dotted key."""
    for key, value in values.items():
        if isinstance(value, bool):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flags(value, f"{prefix}{key}.")


def _is_number(schema: type[Config], key: Sequence[str]) -> bool:
    """Whether the field is a plain number: Python would take true as 1."""
    models, _ = _walk(schema, key[:-1])
    return any(m.model_fields[key[-1]].annotation in (int, float) for m in models if key[-1] in m.model_fields)


def _takes_texts(schema: type[Config], key: Sequence[str]) -> bool:
    """Whether the field is a list of texts or paths and nothing that one text could be."""
    models, _ = _walk(schema, key[:-1])
    fields = [m.model_fields[key[-1]].annotation for m in models if key[-1] in m.model_fields]
    return bool(fields) and all(_is_list_of_texts(annotation) for annotation in fields)


def _is_list_of_texts(annotation: Any) -> bool:
    if get_origin(annotation) in (tuple, list):
        first, *rest = get_args(annotation)
        is_text = first in (str, Path) or (get_origin(first) is Literal and isinstance(get_args(first)[0], str))
        return is_text and (get_origin(annotation) is list or rest == [...])
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return bool(parts) and get_origin(annotation) is not Literal and all(map(_is_list_of_texts, parts))


def _explain(detail: ErrorDetails, schema: type[Config], origins: Mapping[str, str], recipe: Path | str | None) -> str:
    location = tuple(detail["loc"])
    allowed = _fields_at(schema, location[:-1])
    # pydantic puts the tag of a discriminated union into the location; the user's key has no such part
    key = ".".join(str(part) for part in _without_tags(schema, location))
    named = [o for k, o in origins.items() if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")]
    origin = _COMMAND_LINE if _COMMAND_LINE in named else named[0] if named else str(recipe or "the settings")
    if detail["type"] == "extra_forbidden":
        return f"{origin}: unknown key {key!r}. {_meant(schema, key, str(location[-1]), allowed)}".rstrip()
    if detail["type"] == "missing":
        return f"{origin}: {key!r} must be given"
    context = detail.get("ctx", {})
    if detail["type"] == "union_tag_invalid":
        allowed = re.findall(r"'([^']*)'", context["expected_tags"])
        near = nearest(context["tag"], allowed)
        meant = f"{f'Did you mean {near!r}? ' if near else ''}Allowed are: {', '.join(allowed)}."
        name = context["discriminator"].strip("'")
        return f"{origin}: {key}.{name} is {context['tag']!r}. {meant}"
    if detail["type"] == "union_tag_not_found":
        return f"{origin}: {key}.{context['discriminator'].strip(chr(39))} must be given"
    message = _in_full(detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, "), schema, key)
    for python, plain in _PLAIN_WORDS:
        message = re.sub(python, plain, message)
    if not key or isinstance(detail["input"], (Mapping, Config)):
        return f"{origin}: {key}: {message}" if key else f"{origin}: {message}"
    got = repr(detail["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    is_list = detail["type"] in ("tuple_type", "list_type") and origin == _COMMAND_LINE
    hint = f"""; write '{key}=["a", "b"]', with quotes around the whole""" if is_list else ""
    return f"{origin}: {key} is {got}: {message[:1].lower() + message[1:]}{hint}"


def _meant(schema: type[Config], key: str, last: str, allowed: Sequence[str]) -> str:
    """The hint for an unknown key: a name at its place, the same name elsewhere, or all that is allowed."""
    parents = key.rpartition(".")[0]
    prefix = f"{parents}." if parents else ""
    elsewhere = [known for known in _keys(schema) if known == key or known.endswith(f".{key}")]
    if nearest(last, allowed) is None and elsewhere:
        return f"Did you mean {elsewhere[0]!r}?"
    return hint(last, allowed, prefix=prefix, otherwise="`puna show RECIPE` lists the keys of a recipe.")


def _keys(schema: type[Config], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config class whose tables are of one kind each; the shallow ones first."""
    inner: list[tuple[type[Config], str]] = []
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        models = _models_in(field.annotation)
        if len(models) == 1 and get_origin(field.annotation) not in (tuple, list):
            inner.append((models[0], f"{prefix}{name}."))
    for model, before in inner:
        yield from _keys(model, before)


def _in_full(message: str, schema: type[Config], key: str) -> str:
    """What a check tells to `set` with the whole path of its key: a config does not know in which table it stands."""
    own = _fields_at(schema, key.split(".")) if key else []
    return re.sub(
        r"\bset ([a-z_]+)(?=[.= ])", lambda match: f"set {key}.{match[1]}" if match[1] in own else match[0], message
    )


def _models_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _walk(schema: type[Config], location: Sequence[int | str]) -> tuple[list[type[Config]], list[int | str]]:
    models, kept = [schema], []
    for part in location:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        if fields:
            kept.append(part)
            models = [m for f in fields for m in _models_in(f.annotation)]
            continue
        tagged = [
            m
            for m in models
            if any(
                getattr(f, "default", None) == part or part in get_args(f.annotation) for f in m.model_fields.values()
            )
        ]
        if isinstance(part, str) and tagged and len(models) > 1:
            models = tagged
            continue
        kept.append(part)
    return models, kept


def _fields_at(schema: type[Config], location: Sequence[int | str]) -> list[str]:
    models, _ = _walk(schema, location)
    return sorted({name for m in models for name in m.model_fields})


def _without_tags(schema: type[Config], location: Sequence[int | str]) -> list[int | str]:
    if not location:
        return []
    _, kept = _walk(schema, location)
    return kept


def describe(resolved: Resolved[Any]) -> list[Field]:
    """Every leaf of a config with its value, where the value came from, and what it means."""
    return list(_describe(resolved.config, "", resolved.origins))


def _describe(config: Config, prefix: str, origins: Mapping[str, str]) -> Iterator[Field]:
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            yield from _describe(value, f"{key}.", origins)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, Config) for v in value):
            for index, entry in enumerate(value):
                yield from _describe(entry, f"{key}.{index}.", origins)
        else:
            yield Field(
                key,
                _toml_value(_plain(value)),
                _origin(key, origins),
                " ".join((field.description or "").split()),
            )


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Where a value came from; a table with keys of its own (`data.weights`) may have come from several places."""
    inside = dict.fromkeys(origin for known, origin in origins.items() if known == key or known.startswith(f"{key}."))
    return ", ".join(inside) or "default"


def describe_defaults(schema: type[Config], prefix: str = "") -> list[Field]:
    """Every leaf of a config class with its default; what has none says that it must be given."""
    rows = list[Field]()
    for name, field in schema.model_fields.items():
        key, meaning = f"{prefix}{name}", " ".join((field.description or "").split())
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            if isinstance(value, Config):
                rows += _describe(value, f"{key}.", {})
            else:
                rows.append(Field(key, _toml_value(_plain(value)), "default", meaning))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            rows += describe_defaults(field.annotation, f"{key}.")
        else:
            rows.append(Field(key, "?", "must be given", meaning))
    return rows


def _plain(value: Any) -> Any:
    """The value in JSON types."""
    if isinstance(value, Config):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.as_posix() if isinstance(value, Path) else value


def as_dict(config: Config) -> dict[str, Any]:
    """The config in JSON types (paths as text)."""
    return _plain(config)


def fingerprint(config: Config) -> str:
    """SHA-256 over the config's values in canonical JSON."""
    canonical = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_toml(config: Config) -> str:
    """The config as a TOML recipe that gives it back. None values are left out: TOML has no null."""
    lines: list[str] = []
    _emit(as_dict(config), "", lines)
    return "\n".join(lines).strip() + "\n"


def _emit(values: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    tables = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    arrays = {k: v for k, v in values.items() if isinstance(v, list) and v and all(isinstance(x, Mapping) for x in v)}
    for key, value in values.items():
        if key not in tables and key not in arrays and value is not None:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in tables.items():
        lines += ["", f"[{prefix}{_toml_key(key)}]"]
        _emit(value, f"{prefix}{_toml_key(key)}.", lines)
    for key, entries in arrays.items():
        for entry in entries:
            lines += ["", f"[[{prefix}{_toml_key(key)}]]"]
            _emit(entry, f"{prefix}{_toml_key(key)}.", lines)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return str(value)
