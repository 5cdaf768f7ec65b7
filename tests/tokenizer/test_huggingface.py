import json

import pytest
import tokenizers
from transformers import AutoTokenizer

from puna.core.dialog import Dialog
from puna.core.errors import CorruptError, UsageError
from puna.core.files import read_json, write_json
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import prompt, render
from puna.tokenizer.huggingface import merges_of, spell, unspell
from puna.tokenizer.specials import Specials
from tests.tokenizer import corpus

DIALOG = Dialog.of(
    ("system", "Be brief. "),
    ("user", "  Grüße, 你好!\n"),
    ("assistant", "Hello! 1234"),
    ("tool", "{}"),
    ("user", "\n\n  x"),
)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small.save(folder)
    return folder


@pytest.fixture(scope="module", params=["alone", "in a checkpoint"])
def theirs(small, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    small.save(folder)
    if request.param == "in a checkpoint":
        write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    return AutoTokenizer.from_pretrained(folder)


def test_every_byte_is_spelt_and_read_back():
    everything = bytes(range(256))
    assert unspell(spell(everything)) == everything
    assert spell(b" the\n") == "ĠtheĊ"


def test_transformers_gives_the_same_ids_and_text(small, theirs):
    for text in [*corpus.stdlib_texts(10), *corpus.TRICKY[:8]]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == small.encode(text)
        assert theirs.decode(ids) == text


def test_transformers_knows_the_special_tokens(small, theirs):
    assert (theirs.bos_token_id, theirs.eos_token_id) == (small.specials.bos, small.specials.eot)
    assert theirs.pad_token_id == small.specials.pad
    assert len(theirs) == small.vocab_size
    assert theirs("hi")["input_ids"] == [small.specials.bos, *small.encode("hi")]


def test_transformers_renders_the_same_chat(small, theirs):
    messages = DIALOG.as_messages()
    assert theirs.apply_chat_template(messages, tokenize=False) == small.decode(render(small, DIALOG).tokens)
    ours = {False: render(small, DIALOG).tokens, True: prompt(small, DIALOG)}
    for with_header, tokens in ours.items():
        got = theirs.apply_chat_template(messages, add_generation_prompt=with_header, return_dict=True)
        assert got["input_ids"] == tokens


def test_a_folder_its_json_and_its_ranks_load_as_the_same_tokenizer(small, folder):
    for path in (folder, folder / "tokenizer.json", folder / "tokenizer.model"):
        assert Tokenizer.load(path).fingerprint == small.fingerprint


def test_saving_twice_writes_the_same_bytes(small, folder, tmp_path):
    Tokenizer.load(folder).save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_published_shape_with_merges_as_text_and_other_names_loads(small, folder, tmp_path):
    content = read_json(folder / "tokenizer.json")
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    names = Specials.of(len(small.ranks), layout="llama3").names
    for entry, name in zip(content["added_tokens"], names, strict=True):
        entry["content"] = name
    write_json(tmp_path / "tokenizer.json", content)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.ranks == small.ranks
    assert loaded.specials.names == names


def test_all_merges_of_a_real_vocabulary_are_recovered_and_give_tiktokens_ids(cl100k, tmp_path):
    merges = merges_of(cl100k.ranks)
    assert len({left + right for left, right in merges}) == len(cl100k.ranks) - 256
    assert len(merges) > len(cl100k.ranks)
    cl100k.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*corpus.udhr_texts()[::40], *corpus.code_texts()[::40], *corpus.TRICKY[:8]]:
        assert theirs.encode(text, add_special_tokens=False).ids == cl100k.encode(text)
    assert Tokenizer.load(tmp_path).fingerprint == cl100k.fingerprint


def _changed(folder, tmp_path, change):
    content = read_json(folder / "tokenizer.json")
    change(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "WordPiece"),
        (lambda c: c.update(normalizer={"type": "NFC"}), "NFC"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), "does not split text"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "space before"),
        (lambda c: c["model"]["merges"].pop(), "merges"),
        (lambda c: c["model"]["merges"].reverse(), "merges"),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused_with_the_reason(folder, tmp_path, change, reason):
    with pytest.raises(UsageError, match=reason):
        Tokenizer.load(_changed(folder, tmp_path, change))


def test_a_file_whose_merges_miss_a_token_needs_ignore_merges(small, tmp_path):
    ranks = {**small.ranks, b"xqzjv": len(small.ranks)}
    Tokenizer(ranks).save(tmp_path)
    content = read_json(tmp_path / "tokenizer.json")
    content["model"]["ignore_merges"] = False
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(UsageError, match="xqzjv"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_damaged_file_is_reported_by_name(folder, tmp_path):
    path = _changed(folder, tmp_path, lambda c: c.pop("added_tokens"))
    with pytest.raises(CorruptError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
    path.write_text('{"model": ')
    with pytest.raises(CorruptError, match="not valid JSON"):
        Tokenizer.load(path)
