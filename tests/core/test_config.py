"""Recipes: merging, origins, and every problem at once with a hint."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from puna.core.config import Config, Shares, as_dict, describe, fingerprint, load, to_toml
from puna.core.errors import ConfigError, MissingError
from puna.core.nearest import nearest, nearest_file


class Folder(Config):
    """A folder of files."""

    kind: Literal["folder"] = "folder"
    path: Path = Path("texts")


class Lines(Config):
    """A file of lines."""

    kind: Literal["lines"] = "lines"
    file: Path = Path("a.txt")
    limit: int = 0


class Train(Config):
    """Training."""

    steps: int = Field(10, ge=1)
    """How many optimizer steps."""
    lr: float = 1e-3
    """Peak learning rate."""
    decay: int | None = None


class Recipe(Config):
    """A whole recipe."""

    name: str = "tiny"
    """Name of the run."""
    train: Train = Train()
    sources: tuple[Annotated[Folder | Lines, Field(discriminator="kind")], ...] = ()
    weights: dict[str, float] = {}
    files: tuple[Path, ...] | None = None
    roles: tuple[Literal["user", "assistant"], ...] = ()
    levels: tuple[int, ...] = Field((1,), min_length=1)
    span: Shares = (0.0, 1.0)

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.name == "forbidden":
            raise ValueError("name and nothing else is wrong")
        return self


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_are_below_the_recipe_and_the_recipe_below_the_command_line(tmp_path):
    path = write(tmp_path, "name = 'a'\n[train]\nsteps = 5\nlr = 0.5\n")
    resolved = load(Recipe, path, ["train.lr=1e-4", "name=demo run"])
    assert resolved.config.train == Train(steps=5, lr=1e-4)
    assert resolved.config.name == "demo run"
    rows = {f.key: f for f in describe(resolved)}
    assert rows["train.steps"].origin == str(path)
    assert rows["train.lr"].origin == "command line"
    assert rows["train.decay"].origin == "default"
    assert rows["train.lr"].meaning == "Peak learning rate."


def test_all_problems_are_told_together_with_the_nearest_name(tmp_path):
    path = write(tmp_path, "nam = 'a'\n[train]\nstep = 5\nlr = 'fast'\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, ["train.steps=0", "oops"])
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "unknown key 'nam'. Did you mean 'name'?" in text
    assert "unknown key 'train.step'. Did you mean 'train.steps'?" in text
    assert "train.lr is 'fast'" in text
    assert "train.steps is 0" in text
    assert "'oops' is not an override" in text
    assert caught.value.exit_code == 2


def test_keys_inside_a_tagged_union_are_named_without_the_tag(tmp_path):
    path = write(tmp_path, "[[sources]]\nkind = 'lines'\nfil = 'x'\n[[sources]]\nkind = 'line'\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path)
    text = str(caught.value)
    assert "unknown key 'sources.0.fil'. Did you mean 'sources.0.file'?" in text
    assert "sources.1" in text
    assert "folder" in text


def test_lists_of_tables_can_be_overridden_by_index(tmp_path):
    path = write(tmp_path, "[[sources]]\nkind = 'lines'\n")
    resolved = load(Recipe, path, ["sources.0.limit=3"])
    assert resolved.config.sources == (Lines(limit=3),)
    with pytest.raises(ConfigError, match="not a table"):
        load(Recipe, path, ["sources.4.limit=3"])


def test_broken_toml_and_missing_files_are_clear(tmp_path):
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(Recipe, write(tmp_path, "name = \n"))
    with pytest.raises(MissingError, match=r"Did you mean .*recipe\.toml"):
        load(Recipe, tmp_path / "recipes.toml")


def test_a_cross_field_check_keeps_its_words():
    with pytest.raises(ConfigError, match="name and nothing else is wrong"):
        load(Recipe, None, ["name=forbidden"])


def test_written_toml_reads_back_to_the_same_config(tmp_path):
    config = Recipe(
        name='quote " back \\ tab \t ünï',
        train=Train(steps=3, lr=1e-4),
        sources=(Folder(path=Path("a/b")), Lines(limit=2)),
        weights={"code": 0.5, "with space": 1.0},
    )
    path = write(tmp_path, to_toml(config))
    assert load(Recipe, path).config == config


def test_the_fingerprint_follows_values_not_origins(tmp_path):
    path = write(tmp_path, "[train]\nsteps = 10\n")
    assert fingerprint(load(Recipe, path).config) == fingerprint(Recipe())
    assert fingerprint(Recipe(name="b")) != fingerprint(Recipe())
    assert as_dict(Recipe(sources=(Folder(),)))["sources"] == [{"kind": "folder", "path": "texts"}]


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "b"  # type: ignore[misc]


def test_true_is_no_number_and_none_takes_a_value_away(tmp_path):
    path = write(tmp_path, "[train]\nsteps = true\n")
    with pytest.raises(ConfigError, match=r"train\.steps is true: input should be a number"):
        load(Recipe, path)
    resolved = load(Recipe, path, ["train.steps=none"])
    assert resolved.config == Recipe()
    assert resolved.origins == {}


def test_a_cross_field_error_of_a_table_does_not_print_the_table(tmp_path):
    path = write(tmp_path, "sources = 5\nweights = 3\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path)
    assert "input should be a list" in str(caught.value)
    assert "input should be a table" in str(caught.value)


def test_one_text_of_the_command_line_stands_for_a_list_of_one(tmp_path):
    config = load(Recipe, None, ["files=prefs.jsonl", "roles=user"]).config
    assert config.files == (Path("prefs.jsonl"),) and config.roles == ("user",)
    assert load(Recipe, None, ['files=["a", "b"]']).config.files == (Path("a"), Path("b"))
    path = write(tmp_path, "files = 'prefs.jsonl'\n")
    with pytest.raises(ConfigError, match=r"files is 'prefs\.jsonl': input should be a list$"):
        load(Recipe, path)


@pytest.mark.parametrize("text", ["files=[a.jsonl,b.jsonl]", "levels=1"])
def test_what_is_no_list_is_told_how_to_write_one(text):
    with pytest.raises(ConfigError) as caught:
        load(Recipe, None, [text])
    key = text.partition("=")[0]
    assert f"""input should be a list; write '{key}=["a", "b"]', with quotes around the whole""" in str(caught.value)


def test_an_entry_of_a_list_is_blamed_on_who_wrote_the_list(tmp_path):
    path = write(tmp_path, "roles = ['user']\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, ['roles=["wizard"]'])
    assert caught.value.problems[0].startswith("command line: roles.0 is 'wizard'")
    path = write(tmp_path, "roles = ['wizard']\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, ["name=a"])
    assert caught.value.problems[0].startswith(f"{path}: roles.0 is 'wizard'")


def test_a_recipe_that_is_not_utf8_is_told_with_its_place_and_a_mark_at_its_head_is_no_matter(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes("# a\nname = 'caf\u00e9'\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path)
    assert caught.value.problems == (f"{path}:2: not UTF-8: byte 0xe9 at column 12; save it as UTF-8",)
    path.write_bytes("\ufeffname = 'caf\u00e9'\n".encode())
    assert load(Recipe, path).config.name == "caf\u00e9"


def test_a_wrong_entry_of_a_list_that_must_not_be_empty_is_one_problem():
    with pytest.raises(ConfigError) as caught:
        load(Recipe, None, ['levels=["high"]'])
    assert [problem.split(":")[1] for problem in caught.value.problems] == [" levels.0 is 'high'"]


def test_empty_lists_and_ranges_the_wrong_way_round_are_told_in_plain_words():
    with pytest.raises(ConfigError) as caught:
        load(Recipe, None, ["levels=[]", "span=[0.9, 0.1]"])
    assert caught.value.problems == (
        "command line: levels is []: give at least 1",
        "command line: span is [0.9, 0.1]: give two shares of 0 to 1, the lower one first",
    )


def test_a_hint_keeps_the_whole_path_and_a_beginning_goes_before_a_likeness(tmp_path):
    cases = {
        "train.stpes=3": "Did you mean 'train.steps'?",
        "train.dec=3": "Did you mean 'train.decay'?",
        "lr=0.1": "Did you mean 'train.lr'?",
        "train.banana=1": "Allowed are: decay, lr, steps.",
    }
    for given, told in cases.items():
        with pytest.raises(ConfigError) as caught:
            load(Recipe, None, [given])
        assert told in str(caught.value), given


def test_what_a_check_tells_to_set_is_told_with_its_whole_path(tmp_path):
    class Inner(Config):
        warmup: int = 1

        @model_validator(mode="after")
        def _check(self) -> "Inner":
            if self.warmup > 3:
                raise ValueError("too long; set warmup lower, or set nothing")
            return self

    class Outer(Config):
        train: Inner = Inner()

    with pytest.raises(ConfigError, match=r"set train\.warmup lower, or set nothing"):
        load(Outer, None, ["train.warmup=5"])


def test_the_origin_of_a_table_of_free_keys_is_where_its_keys_were_set(tmp_path):
    path = write(tmp_path, "[weights]\ncode = 0.5\n")
    assert {f.key: f.origin for f in describe(load(Recipe, path))}["weights"] == str(path)
    both = {f.key: f.origin for f in describe(load(Recipe, path, ["weights.prose=1.0"]))}
    assert both["weights"] == f"{path}, command line"


@pytest.mark.parametrize(
    ("given", "allowed", "near"),
    [
        ("min", ["domains", "min_characters"], "min_characters"),
        ("min", ["domains", "kind"], None),
        ("trian", ["train", "tokenize"], "train"),
        ("x", ["xylophone"], None),
    ],
)
def test_what_is_not_near_is_not_meant(given, allowed, near):
    assert nearest(given, allowed) == near


def test_file_names_are_not_alike_by_their_ends():
    assert nearest_file("nosuch.toml", ["c.toml", "d.toml"]) is None
    assert nearest_file("my/crwal.toml", ["my/c.toml", "my/crawl.toml"]) == "my/crawl.toml"
