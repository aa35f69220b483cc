"""Counts of word pairs: by hand, against a naive counter, and what is said of files that cannot be counted."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.errors import DataError, OutputError, SettingsError
from kn_lens.frequency import check_source, count_pairs, english_bigrams, load_counts, read_counts
from kn_lens.prompts.cue_pairs import cue_pair, cue_pairs
from kn_lens.prompts.load import load_minimal_pairs, load_relation
from kn_lens.text_blocks import LONGEST_LINE

TEXT = """These books lie here. These old books, and this book.
THESE Books! These these books? "These books," she said
These
books are Anna's; Anna’s books.
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def counted(path: Path, pair: tuple[str, str], window: int = 1) -> int | None:
    return count_pairs(path, [pair], window=window, progress=False).of(*pair)


def naive(text: str, first: str, second: str, window: int) -> int:
    """Sentence by sentence and word by word, from the definition."""
    found, words = 0, []
    sentences: list[list[str]] = [[]]
    word = ""
    for character in [*unicodedata.normalize("NFC", text.casefold()), "\n"]:
        if character.isalnum():
            word += character
            continue
        if word:
            sentences[-1].append(word)
            word = ""
        if character in ".!?\n":
            sentences.append([])
    for words in sentences:
        for index, here in enumerate(words):
            found += here == first and second in words[index + 1 : index + 1 + window]
    return found


@pytest.mark.parametrize(
    ("pair", "window", "count"),
    [
        (("these", "books"), 1, 4),  # not "old books", and not over the end of a line
        (("These", "BOOKS"), 1, 4),
        (("these", "books"), 2, 6),  # "old books", and both of "these these books"
        (("these", "these"), 1, 1),
        (("this", "book"), 1, 1),
        (("this", "these"), 9, 0),  # the sentence ends
        (("here", "these"), 5, 0),
        (("books", "and"), 1, 1),  # a comma does not end it
        (("anna's", "anna's"), 1, 1),  # either apostrophe; a quotation mark is none
        (("Anna’s", "books"), 1, 1),
        (("books", "she"), 1, 1),
        (("anna", "books"), 9, 0),
        (("these old", "books"), 1, 1),  # phrases
        (("these", "old books"), 1, 1),
        (("these", "old book"), 1, 0),
        (("books are", "anna's books"), 2, 1),
    ],
)
def test_counts_by_hand(text, pair, window, count):
    assert counted(text, pair, window) == count


def test_each_first_word_counts_once(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("a b b b\na a b")
    assert counted(path, ("a", "b"), 3) == 3
    assert counted(path, ("b", "b"), 1) == 2


def test_what_is_counted_says_so(text):
    counts = count_pairs(text, [("These", "Books"), ("that", "book"), ("these", "books")], window=1, progress=False)
    assert dict(counts.counts) == {("these", "books"): 4, ("that", "book"): 0}
    assert counts.tokens == 25
    assert counts.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (counts.window, counts.source, counts.closed) == (1, str(text), True)
    assert counts.of("that", "book") == 0
    assert counts.of("this", "book") is None  # was not looked for
    coverage = counts.coverage([("these", "books"), ("THAT", "book"), ("this", "book"), ("that", "book")])
    assert (coverage.asked, coverage.known, coverage.seen) == (3, 2, 1)
    assert coverage.unseen == (("that", "book"), ("this", "book"))


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_a_naive_counter(tmp_path, seed):
    generator = random.Random(seed)
    words = ["a", "A", "b", "B", "c", "é", "É", "e\u0301", "ß", "SS", "d3", "zz"]
    gaps = [" "] * 8 + ["\n", ". ", "! ", "?", ", ", " - ", "\r\n", "\r", "_", "\t", "\x0c"]
    text = "".join(generator.choice(words) + generator.choice(gaps) for _ in range(3000))
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    plain = ["a", "b", "c", "é", "ss", "d3", "zz"]
    pairs = [(first, second) for first in plain for second in plain]
    for window in (1, 2, 5):
        counts = count_pairs(path, pairs, window=window, progress=False)
        expected = {pair: naive(text.replace("\r", "\n"), *pair, window) for pair in pairs}
        assert dict(counts.counts) == expected
    assert sum(expected.values()) > 1000


def test_gzip_is_read_as_it_is(tmp_path, text):
    zipped = tmp_path / "text.txt.gz"
    zipped.write_bytes(gzip.compress(text.read_bytes()))
    renamed = tmp_path / "text"
    renamed.write_bytes(zipped.read_bytes())
    for path in (zipped, renamed):
        counts = count_pairs(path, [("these", "books")], progress=False)
        assert counts.of("these", "books") == 4
        assert counts.tokens == 25
        assert counts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_byte_order_mark_is_no_letter(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfthese books")
    assert counted(path, ("these", "books")) == 1


def test_pairs_across_blocks(tmp_path):
    """The file is read in blocks; lines of many lengths put their ends everywhere."""
    generator = random.Random(0)
    lines = ["these bööks " * generator.randrange(1, 60) for _ in range(4000)]
    path = tmp_path / "t.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert path.stat().st_size > 1_000_000
    times = sum(line.count("these") for line in lines)
    assert counted(path, ("these", "bööks")) == times
    assert counted(path, ("bööks", "these")) == times - len(lines)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path, peaks = tmp_path / "big.txt", []
    for repeats in (1, 5):
        path.write_text("The keys near these old books are here, and that is all.\n" * 9000 * repeats)
        tracemalloc.start()
        counts = count_pairs(path, [("these", "books"), ("the", "keys")], window=2, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert dict(counts.counts) == {("these", "books"): 9000 * repeats, ("the", "keys"): 9000 * repeats}
    assert path.stat().st_size > 2.5e6
    assert peaks[1] < 1.2 * peaks[0] < 8e6


def test_a_line_without_an_end_is_refused_before_it_fills_memory(tmp_path):
    path = tmp_path / "endless.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"one line\n")
        for _ in range(60):
            file.write(b"word " * 200_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"endless.txt.gz:2: a line of more than 1,000,000 characters; break .* fold"):
        counted(path, ("a", "b"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


def test_the_longest_line_is_counted_in_characters(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("é" * (LONGEST_LINE - 4) + " a b\nx\n", encoding="utf-8")
    assert counted(path, ("a", "b")) == 1
    path.write_text("x\n" + "é" * (LONGEST_LINE - 3) + " a b\nx\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"t.txt:2: a line of more than"):
        counted(path, ("a", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.txt: the file is empty"),
        (b"\n .\n", "t.txt: the file holds no words"),
        (b"one\r\ntwo\rthree \xff\n", "t.txt:3: not UTF-8 text; save the file as UTF-8"),
        ("schön\n".encode("latin-1"), "t.txt:1: not UTF-8"),
        ("a b\n".encode("utf-16-le"), "t.txt:1: a zero byte: this is a binary file, or UTF-16"),
        (b"a\nb\n" * 200_000 + b"c \0", "t.txt:400001: a zero byte"),
        (b"a\nb\n" * 200_000 + b"c \xe9", "t.txt:400001: not UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        counted(path, ("a", "b"))
    assert message in str(error.value)


def test_damaged_gzip_files(tmp_path):
    whole = gzip.compress(("a b c\n" * 200_000).encode() + random.Random(0).randbytes(1).hex().encode())
    path = tmp_path / "t.txt.gz"
    damages = {"cut": whole[:-20], "no gzip": b"a b\n", "checksum": whole[:-8] + b"12345678", "tail": whole + b"more"}
    for content in damages.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t.txt.gz: a damaged .gz, readable up to line \d+ .*copy it again"):
            counted(path, ("a", "b"))


def test_no_such_file_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nowhere.txt"):
        counted(tmp_path / "nowhere.txt", ("a", "b"))
    with pytest.raises(DataError, match="is a folder; name a file"):
        counted(tmp_path, ("a", "b"))


def test_what_cannot_be_asked_for(text):
    with pytest.raises(SettingsError, match="window is 0; give 1"):
        counted(text, ("a", "b"), 0)
    with pytest.raises(SettingsError, match="no pairs to count"):
        count_pairs(text, [])
    for pair in (("a", ""), ("—", "b"), ("a. b", "c")):
        with pytest.raises(SettingsError, match="cannot count the pair"):
            counted(text, pair)


def table(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "counts.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_a_table(tmp_path):
    path = table(
        tmp_path,
        'kind,second,first,count\r\ndet,books,these,7\nx,Books,These,5\n\ny,book,this,0\nz,"a, b",\'s,3\n',
    )
    counts = read_counts(path)
    assert dict(counts.counts) == {("these", "books"): 12, ("this", "book"): 0, ("'s", "a, b"): 3}
    assert counts.of("THESE", "books") == 12
    assert counts.of("this", "book") == 0
    assert counts.of("that", "book") is None
    assert read_counts(path, closed=True).of("that", "book") == 0
    assert counts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (counts.window, counts.tokens, counts.closed) == (None, None, False)


def test_written_and_read_back(tmp_path, text):
    counts = count_pairs(text, [("these", "books"), ("that", "book"), ("a, b", 'c "d"')], progress=False)
    for name in ("out.csv", "out.csv.gz"):
        back = read_counts(counts.write(tmp_path / name))
        assert dict(back.counts) == dict(counts.counts)
        assert back.of("that", "book") == 0
    with pytest.raises(OutputError, match="cannot write"):
        counts.write(tmp_path / "no folder" / "out.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "first,count\na,1\n",
            "counts.csv:1: no column second; the header is 'first,count', and must name first,second",
        ),
        ("first;second;count\na;b;1\n", "counts.csv:1: no column first, second, count; the header is"),
        ("first,second,count\na,b,1\nc,d,-2\n", "counts.csv:3: count is '-2'; write a whole number, 0 or more"),
        ("first,second,count\na,b,1.5\n", "counts.csv:2: count is '1.5'"),
        ("first,second,count\na,b,\n", "counts.csv:2: count is ''"),
        ("first,second,count\na,b,1e3\n", "counts.csv:2: count is '1e3'"),
        ("first,second,count\na,b,1\nA,b,2\na, b ,3\n", "counts.csv:4: the pair a,b stands in line 2 already"),
        ("first,second,count\na,b\n", "counts.csv:2: 2 fields, and the header names 3"),
        ("first,second,count\na,,3\n", "counts.csv:2: the second word is empty"),
        ('first,second,count\n"a,b,3\n', "counts.csv:2: no CSV (unexpected end of data)"),
        ("first,second,count\n", "counts.csv: the table holds no rows"),
        ("", "counts.csv: the file is empty"),
        ("first,second,count\na,b\0,3\n", "counts.csv:2: a zero byte"),
    ],
)
def test_broken_tables(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        read_counts(table(tmp_path, content))
    assert message in str(error.value)


def test_english_bigrams_are_those_of_the_table():
    """Spellings that differ in case are added up, read here from the file itself; a pair that is absent is unknown."""
    wordsegment = pytest.importorskip("wordsegment")
    pairs = [("This", "book"), ("these", "books"), ("these", "zebrafish")]
    counts = english_bigrams(pairs)
    lines = Path(wordsegment.Segmenter.BIGRAMS_FILENAME).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    expected = sum(int(count) for words, count in rows if words.lower() == "this book")
    assert sum(words.lower() == "this book" for words, _ in rows) == 2
    assert counts.of("this", "book") == expected
    assert counts.of("these", "zebrafish") is None
    assert not counts.closed
    assert counts.window == 1
    assert counts.coverage(pairs).unseen == (("these", "zebrafish"),)


def test_english_without_its_package():
    code = (
        "import sys; sys.modules['wordsegment'] = None\nimport kn_lens as kn\n"
        "try: kn.load_counts('english', [('a', 'b')])\nexcept kn.DataError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("pip install 'kn-lens[counts]'")


def test_load_counts_by_name(tmp_path, text):
    pairs = [("these", "books")]
    assert load_counts(text, pairs, progress=False).of("these", "books") == 4
    assert load_counts(str(text), pairs, 2, progress=False).of("these", "books") == 6
    path = table(tmp_path, "first,second,count\nthese,books,7\n")
    assert load_counts(path, pairs).of("these", "books") == 7
    assert load_counts("english", pairs).of("these", "books") == english_bigrams(pairs).of("these", "books")
    with pytest.raises(SettingsError, match="is a table of counts, made with a window of its own"):
        load_counts(path, pairs, 2)
    with pytest.raises(SettingsError, match="english is a table"):
        check_source("english", 1)
    with pytest.raises(SettingsError, match="window is 0"):
        load_counts(text, pairs, 0)
    with pytest.raises(DataError, match=r"no counts named 'englsh'\. Did you mean 'english'\? Known: .*english; else"):
        load_counts("englsh", pairs)
    with pytest.raises(DataError, match=r"no counts named '.*none\.csv'"):
        check_source(str(tmp_path / "none.csv"))


def test_the_pair_of_a_prompt_is_in_the_order_of_the_text():
    before = kn.Prompt("Anna saw These", suffix="near the door.", target="Books", cue=(9, 14))
    behind = kn.Prompt("Anna saw", suffix="old Books near the door.", target="these", cue="Books")
    subject = kn.Prompt("The capital of New Zealand is", target="Wellington", cue="New Zealand")
    assert cue_pair(before) == cue_pair(behind) == ("these", "books")
    assert cue_pair(subject) == ("new zealand", "wellington")
    with pytest.raises(kn.PromptError, match=r"pairs.jsonl:3: 'Anna saw' has no cue"):
        cue_pair(kn.Prompt("Anna saw", target="it", source="pairs.jsonl:3"))


def test_the_pairs_of_a_data_set():
    """Both forms of a determiner paradigm ask for the same pairs; a relation's are its facts."""
    pairs, without = cue_pairs(load_minimal_pairs("subject_verb_agreement"))
    assert without == 0
    assert all(second.isalpha() and first.isalpha() for first, second in pairs)
    assert len(set(pairs)) == len(pairs) > 20
    facts, without = cue_pairs(load_relation("P36"))
    assert without == 0
    assert ("france", "paris") in facts
    assert len(facts) == len(load_relation("P36"))
