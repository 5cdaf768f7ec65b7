import pytest
import sentencepiece
import tokenizers

from puna.core.errors import CorruptError, MissingError
from puna.tokenizer.report import Counter, Sample, compare, open_counter
from puna.tokenizer.train import train_bpe
from tests.tokenizer import corpus

SAMPLES = [
    Sample("Hello there, friend.", "en", "prose"),
    Sample("Grüße an alle!", "de", "prose"),
    Sample("for i in range(10): print(i)", "en", "code"),
    Sample("A second text.", "en", "prose"),
]


def test_rows_count_characters_bytes_and_tokens_by_language_and_domain(small):
    rows = compare(Counter.of(small, name="ours"), [], SAMPLES)
    assert [(row.language, row.domain, row.documents) for row in rows] == [
        ("de", "prose", 1),
        ("en", "code", 1),
        ("en", "prose", 2),
        ("all", "all", 4),
    ]
    german, total = rows[0], rows[-1]
    assert (german.characters, german.bytes) == (14, 16)
    assert german.tokens == len(small.encode("Grüße an alle!"))
    assert german.bytes_per_token == 16 / german.tokens
    assert total.tokens == sum(row.tokens for row in rows[:-1])
    assert total.tokens_ratio == 1


def test_the_ratio_is_their_tokens_for_one_of_ours(small):
    letters = Counter("letters", 256, len)
    ours, theirs = compare(Counter.of(small, name="ours"), [letters], SAMPLES[:1])[:2]
    assert (ours.tokens_ratio, theirs.tokens) == (1, 20)
    assert theirs.tokens_ratio == 20 / ours.tokens
    assert theirs.characters_per_token == 1


def test_our_folder_a_ranks_file_and_a_json_count_the_same(small, tmp_path):
    small.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"):
        counter = open_counter(path)
        assert counter.vocab_size == small.vocab_size
        assert [counter.count(s.text) for s in SAMPLES] == [len(small.encode(s.text)) for s in SAMPLES]


def test_a_json_of_another_kind_is_counted_by_its_own_library(tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "A": 1}, unk_token="[UNK]"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other.save(str(tmp_path / "words.json"))
    counter = open_counter(tmp_path / "words.json", name="words")
    assert (counter.name, counter.count("A second text.")) == ("words", 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sentencepiece_model_is_counted(tmp_path):
    (tmp_path / "text.txt").write_text(corpus.stdlib_texts(3)[0])
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "sp"), vocab_size=300, minloglevel=2
    )
    counter = open_counter(tmp_path / "sp.model")
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    assert counter.vocab_size == 300
    assert counter.count("import sys") == len(own.encode("import sys"))


def test_a_larger_vocabulary_needs_fewer_tokens(small):
    larger = train_bpe(corpus.stdlib_texts(40), vocab_size=4096)
    texts = [Sample(text, "en", "code") for text in corpus.stdlib_texts(60)[40:]]
    row = compare(Counter.of(small, name="small"), [Counter.of(larger, name="larger")], texts)[-1]
    assert row.tokens_ratio < 0.85


def test_what_is_not_there_or_no_tokenizer_or_no_text_is_a_clear_error(small, tmp_path):
    with pytest.raises(MissingError, match="not there"):
        open_counter(tmp_path / "absent")
    with pytest.raises(MissingError, match="no tokenizer"):
        open_counter(tmp_path)
    (tmp_path / "x.model").write_bytes(b"no tokenizer at all")
    with pytest.raises(CorruptError, match="neither a tiktoken ranks file"):
        open_counter(tmp_path / "x.model")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"x\.json"):
        open_counter(tmp_path / "x.json")
    with pytest.raises(MissingError, match="no text"):
        compare(Counter.of(small, name="ours"), [], [])
