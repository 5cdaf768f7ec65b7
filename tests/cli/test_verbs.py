"""The verbs that are no stage, on a tiny model with random weights."""

import io
import socket

import pytest
import torch

from puna.checkpoint.format import load_model, load_tokenizer, save_model
from puna.cli import main
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer.train import train_bpe

TEXT = "the quick brown fox jumps over the lazy dog. Grüße aus Köln! 1234567890\n" * 20


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    tokenizer = train_bpe([TEXT], vocab_size=560)
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=tokenizer.vocab_size, max_seq_len=128
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, model, config, tokenizer=tokenizer)
    return path


def test_a_model_goes_out_to_metas_layout_and_comes_back_the_same(model_path, tmp_path, capfd):
    meta, back = tmp_path / "meta", tmp_path / "back"
    assert main.run(["export", "meta", str(model_path), str(meta)]) == 0
    assert main.run(["export", "hf", str(meta), str(back)]) == 0
    ours, theirs = load_model(model_path)[0].state_dict(), load_model(back)[0].state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    assert load_tokenizer(back).encode(TEXT) == load_tokenizer(model_path).encode(TEXT)


def test_export_halves_the_weights_when_asked_and_shards_them(model_path, tmp_path):
    out = tmp_path / "half"
    assert main.run(["export", "hf", str(model_path), str(out), "--dtype", "bfloat16", "--max-shard-gib", "1e-5"]) == 0
    assert (out / "model.safetensors.index.json").is_file()
    assert {t.dtype for t in load_model(out)[0].state_dict().values() if t.is_floating_point()} == {torch.bfloat16}


def test_export_never_writes_over_something(model_path, tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years")
    assert main.run(["export", "hf", str(model_path), str(tmp_path)]) == 2
    assert "Nothing was written" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("words", [["chat"], ["serve"], ["export", "hf"]])
def test_a_path_without_a_model_is_missing(words, tmp_path, capfd):
    tail = [str(tmp_path / "out")] if words[0] == "export" else []
    ports = ["port=0"] if words[0] == "serve" else []
    assert main.run([*words, str(tmp_path / "nowhere"), *tail, *ports]) == 3
    told = capfd.readouterr().err
    assert "nowhere" in told
    assert "Traceback" not in told


def test_a_port_in_use_is_told_before_the_model_is_loaded(tmp_path, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main.run(["serve", str(tmp_path / "nowhere"), "--port", str(taken.getsockname()[1])]) == 2
    assert "port is in use" in capfd.readouterr().err


def test_a_chat_answers_and_ends_with_the_input(model_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\n"))
    assert main.run(["chat", str(model_path), "--max-tokens", "3", "--temperature", "0"]) == 0
    assert "The conversation is empty again" in capfd.readouterr().out


def test_a_chat_over_a_pipe_shows_no_prompt(model_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.StringIO("/reset\n"))
    assert main.run(["chat", str(model_path)]) == 0
    assert "> " not in capfd.readouterr().out


@pytest.mark.parametrize(("made_by", "told"), [("pretraining", True), ("supervised fine-tuning", False)])
def test_a_chat_with_a_base_model_says_that_it_is_one(model_path, tmp_path, monkeypatch, capfd, made_by, told):
    from puna.checkpoint.card import Card

    tokenizer = load_tokenizer(model_path)
    save_model(tmp_path / "m", *load_model(model_path), tokenizer=tokenizer, card=Card(made_by=made_by))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main.run(["chat", str(tmp_path / "m")]) == 0
    assert ("not fine-tuned for dialogs" in capfd.readouterr().out) is told


def test_a_vocabulary_that_is_too_small_is_told_why(tokenizer_recipe, capfd):
    assert main.run(["tokenize", "train", str(tokenizer_recipe), "vocab_size=100"]) == 2
    assert "256 bytes and 256 special tokens" in capfd.readouterr().err
    assert main.run(["tokenize", "train", str(tokenizer_recipe), "vocab_size=many"]) == 2
    assert "input should be an integer\n" in capfd.readouterr().err


def test_a_missing_input_that_no_recipe_makes_is_told_with_what_makes_its_kind(tokenizer_recipe, monkeypatch, capfd):
    monkeypatch.chdir(tokenizer_recipe.parent)
    assert main.run(["tokenize", "train", str(tokenizer_recipe), "corpus=nosuch"]) == 3
    assert "corpus=PATH. `puna curate RECIPE` makes one" in capfd.readouterr().err
    assert main.run(["eval", "demo/eval-base", "model=nosuch"]) == 3
    assert "`puna train RECIPE` makes one" in capfd.readouterr().err


def test_tokens_of_a_text_are_shown_and_add_up(model_path, capfd):
    assert main.run(["tokenize", "text", str(model_path), "the fox<|eot_id|>", "--ids"]) == 0
    ids = [int(word) for word in capfd.readouterr().out.split()]
    tokenizer = load_tokenizer(model_path)
    assert tokenizer.decode(ids) == "the fox<|eot_id|>"
    assert tokenizer.specials.eot not in ids
    assert main.run(["tokenize", "text", str(model_path), "the fox"]) == 0
    assert "7 characters, 7 bytes" in capfd.readouterr().out


def test_a_text_that_is_not_utf8_is_told_with_the_byte(model_path, tmp_path, capfd):
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    assert main.run(["tokenize", "text", str(model_path), "--file", str(tmp_path / "latin.txt")]) == 1
    assert "not UTF-8: byte 2 is 0xfc" in capfd.readouterr().err


def test_tokenizers_are_compared_by_language_and_domain(model_path, tmp_path, capfd):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["tokenize", "report", str(model_path), str(model_path), "--text", f"en:prose={tmp_path / 'text.txt'}"]
    assert main.run(words) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    measured = [row for row in rows if "prose" in row]
    assert len(measured) == 2
    assert measured[0][-1] == "1.000"


def test_a_comparison_without_text_is_a_wrong_command(model_path, capfd):
    assert main.run(["tokenize", "report", str(model_path)]) == 2
    assert "give --corpus or --text" in capfd.readouterr().err


def test_the_doctor_names_the_pip_line_of_what_is_missing(monkeypatch, capfd):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else found(name))
    assert main.run(["doctor", "--quick"]) == 0
    told = capfd.readouterr().out
    assert "missing: fastapi" in told
    assert "pip install 'puna[serve]'" in told


@pytest.fixture
def tokenizer_recipe(tmp_path):
    path = tmp_path / "tok.toml"
    path.write_text('# puna tokenize train tok.toml\nout = "o"\ncorpus = "c"\nvocab_size = 600\n')
    return path


def test_show_tells_value_origin_and_meaning_of_every_field(tokenizer_recipe, capfd):
    from puna.stages.tokenizer import TokenizerRecipe

    assert main.run(["show", str(tokenizer_recipe), "vocab_size=700"]) == 0
    told = capfd.readouterr().out
    for name, field in TokenizerRecipe.model_fields.items():
        assert f"\n{name} = " in told
        assert " ".join((field.description or "?").split()) in told
    assert "vocab_size = 700" in told
    assert "[command line]" in told
    assert f"[{tokenizer_recipe}]" in told


def test_show_as_toml_is_a_recipe_that_gives_the_same_back(tokenizer_recipe, tmp_path, capfd):
    assert main.run(["show", str(tokenizer_recipe), "--toml"]) == 0
    whole = tmp_path / "whole.toml"
    whole.write_text(capfd.readouterr().out)
    assert main.run(["show", str(whole), "--toml"]) == 0
    assert capfd.readouterr().out == whole.read_text()


def test_show_of_a_recipe_without_a_known_stage_asks_for_it(tmp_path, capfd):
    path = tmp_path / "x.toml"
    path.write_text('out = "o"\n')
    assert main.run(["show", str(path)]) == 2
    assert "--stage VERB" in capfd.readouterr().err


def test_a_stage_verb_tells_every_problem_of_a_recipe_at_once(tokenizer_recipe, capfd):
    assert main.run(["tokenize", "train", str(tokenizer_recipe), "vocab_size=3", "corpse=x"]) == 2
    told = capfd.readouterr().err
    assert "2 problems" in told
    assert "Did you mean 'corpus'" in told
    assert "vocab_size is 3" in told


def test_a_stage_verb_names_the_command_that_makes_a_missing_input(tokenizer_recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.toml").write_text('out = "c"\n[[sources]]\nkind = "python_stdlib"\nname = "code"\n')
    steps = (
        '[[steps]]\nverb = "curate"\nrecipe = "corpus.toml"\n[[steps]]\nverb = "tokenize train"\nrecipe = "tok.toml"\n'
    )
    (tmp_path / "run.toml").write_text(f'out = "."\n{steps}')
    assert main.run(["tokenize", "train", "tok.toml"]) == 3
    assert "Make it first: puna curate corpus.toml" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_pipeline_names_the_command_that_makes_a_missing_input(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main.run(["run", "demo-long", "--dry-run"]) == 3
    assert "model runs/demo/sft is not there. Make it first: puna run demo" in capfd.readouterr().err
