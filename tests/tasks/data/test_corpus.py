"""A corpus is what its files say: every kind of file, every split share, and a fingerprint that follows the content."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from tasks.data.corpora import build_corpus
from tasks.data.corpus import Files, Hub, Stdlib, split_of
from tasks.data.files import expand
from tests.tasks import data_zoo

AWKWARD = "one\u2028two\x85three\x0cfour"  # line breaks to Python, plain characters to JSON


def texts(corpus: Files) -> list[str]:
    return [document.text for document in corpus.documents()]


def test_a_text_file_is_one_document_named_by_its_path_below_the_folder_all_share(tmp_path):
    pattern = data_zoo.write_texts(tmp_path, 3)
    documents = list(Files(paths=(pattern,)).documents())
    assert [document.name for document in documents] == [f"00{number}.txt" for number in range(3)]
    assert documents[1].text == data_zoo.text(1)


def test_a_separator_makes_documents_of_a_text_file_and_part_of_the_key_alone_where_it_is_given(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\n\n\n\nfour\n")
    (tmp_path / "other.txt").write_bytes(b"five")
    pattern = f"{tmp_path}/*.txt"
    divided = Files(paths=(pattern,), separator="\n\n")
    named = {"book.txt:1": "one\ntwo", "book.txt:2": "three", "book.txt:4": "four\n", "other.txt:1": "five"}
    assert dict(document[:2] for document in divided.documents()) == named
    assert divided.fingerprint() == Files(paths=(pattern,)).fingerprint()
    assert divided.model_dump()["separator"] == "\n\n" and "separator" not in Files(paths=(pattern,)).model_dump()
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl: separator divides .txt files; here each row is a document"):
        Files(paths=(pattern, f"{tmp_path}/rows.jsonl"), separator="\n\n").fingerprint()


def test_each_json_line_is_a_document_whatever_stands_in_its_strings(tmp_path):
    rows = [json.dumps({"body": content}, ensure_ascii=False) for content in (AWKWARD, "plain")]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join([rows[0], "", rows[1]]).encode())
    corpus = Files(paths=(str(tmp_path / "a.jsonl"),), field="body")
    assert texts(corpus) == [AWKWARD, "plain"]
    assert [document.name.rpartition(":")[2] for document in corpus.documents()] == ["1", "3"]
    assert corpus.fingerprint()


def test_each_parquet_row_is_a_document(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", None, "", "c"], "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    skipping = Files(paths=(str(tmp_path / "a.parquet"),), nulls="skip")
    assert [(row.name.rpartition(":")[2], row.text) for row in skipping.documents()] == [("0", "a"), ("2", ""), ("3", "c")]
    with pytest.raises(ValueError, match="a.parquet, row 1: field 'text' is null; nulls: skip leaves out such rows"):
        texts(Files(paths=(str(tmp_path / "a.parquet"),)))
    with pytest.raises(ValueError, match="no field 'body'; choose one of text, n"):
        Files(paths=(str(tmp_path / "a.parquet"),), field="body").fingerprint()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "large_binary", "dictionary", "json"])
def test_a_parquet_column_of_text_is_read_however_it_is_stored(kind, tmp_path):
    import pyarrow
    from pyarrow import parquet

    kinds = {"dictionary": lambda: pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "json": lambda: pyarrow.json_()}
    column = pyarrow.array(["eins", "zwei \u00e4", None, "eins"]).cast(kinds.get(kind, lambda: getattr(pyarrow, kind)())())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    corpus = Files(paths=(str(tmp_path / "a.parquet"),), nulls="skip")
    assert texts(corpus) == ["eins", "zwei \u00e4", "eins"] and corpus.fingerprint()


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: __import__("pyarrow").compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_hold_the_documents_of_plain_ones_and_a_damaged_one_is_named(suffix, tmp_path):
    rows = "".join(json.dumps({"text": f"document {number} {AWKWARD}"}) + "\n" for number in range(500)).encode()
    pack = PACKERS[suffix]
    for name, content in {"a.jsonl": rows, "b.txt": b"plain text"}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}{suffix}").write_bytes(pack(content[:9]) + pack(content[9:]))  # joined, as tools join logs
    plain, packed = (Files(paths=(str(tmp_path / f"a.jsonl{end}"), str(tmp_path / f"b.txt{end}"))) for end in ("", suffix))
    assert texts(packed) == texts(plain) and packed.fingerprint() and len(texts(plain)) == 501
    for bad in (pack(rows)[:-20], rows[:50]):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(bad)
        with pytest.raises(ValueError, match=f"a.jsonl{suffix}: damaged or not packed as its name says"):
            packed.fingerprint()


def test_marks_of_byte_order_and_the_line_ends_of_windows_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo \ufeff\r\n".encode())
    (tmp_path / "b.jsonl").write_bytes('\ufeff{"text": "one\\r\\n"}\r\n{"text": "two"}\r\n'.encode())
    assert texts(Files(paths=(str(tmp_path / "*"),))) == ["one\ntwo \ufeff\n", "one\r\n", "two"]


def test_a_file_or_folder_with_wildcards_in_its_name_counts_before_what_they_match(tmp_path):
    for name in ("a[1].txt", "a1.txt", "d[1]/b?.txt", "d[1]/bc.txt", "d1/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = {
        pattern: texts(Files(paths=(str(tmp_path / pattern),)))
        for pattern in ("a[1].txt", "a[12].txt", "d[1]/*.txt", "d[1]/b?.txt", "d?/*.txt", "**/b.txt")
    }
    assert found == {
        "a[1].txt": ["a[1].txt"],
        "a[12].txt": ["a1.txt"],
        "d[1]/*.txt": ["d[1]/b?.txt", "d[1]/bc.txt"],
        "d[1]/b?.txt": ["d[1]/b?.txt"],
        "d?/*.txt": ["d1/b.txt"],
        "**/b.txt": ["d1/b.txt"],
    }


def test_the_first_row_of_every_file_is_looked_at_before_a_large_corpus_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.data.corpus.VALIDATE_BYTES", 10)
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 30)
    (tmp_path / "b.jsonl").write_text('{"body": "not"}\n')
    with pytest.raises(ValueError, match="b.jsonl, line 1: no text field 'text'; it has body"):
        Files(paths=(str(tmp_path / "*.jsonl"),)).fingerprint()


def test_the_fingerprint_follows_content_and_not_the_order_of_listing(tmp_path):
    data_zoo.write_texts(tmp_path, 3)
    paths = [str(tmp_path / f"00{number}.txt") for number in range(3)]
    print_of = lambda *listed: Files(paths=listed).fingerprint()  # noqa: E731
    first = print_of(*paths)
    assert first == print_of(*reversed(paths)) == print_of(str(tmp_path / "*.txt")) == print_of(*paths, paths[0])
    (tmp_path / "001.txt").write_text("changed")
    assert print_of(*paths) != first != print_of(*paths[:2])


def test_the_same_files_in_another_place_are_the_same_corpus(tmp_path):
    made = []
    for place in ("here", "over/there"):
        data_zoo.write_texts(tmp_path / place / "a", 2)
        data_zoo.write_texts(tmp_path / place / "b", 1)
        corpus = Files(paths=(str(tmp_path / place / "*" / "*.txt"),))
        made.append((corpus.fingerprint(), list(corpus.documents())))
    assert made[0] == made[1] and [document.name for document in made[0][1]] == ["a/000.txt", "a/001.txt", "b/000.txt"]


def test_large_corpora_are_fingerprinted_by_content_too(tmp_path, monkeypatch):
    pattern = data_zoo.write_texts(tmp_path, 2)
    monkeypatch.setattr("tasks.data.corpus.VALIDATE_BYTES", 10)
    first = Files(paths=(pattern,)).fingerprint()
    (tmp_path / "001.txt").write_text(data_zoo.text(1).replace("wheat", "wheel"))
    assert Files(paths=(pattern,)).fingerprint() != first


def test_the_hub_is_fingerprinted_by_what_pins_it():
    fields = {"dataset": "a/b", "revision": 40 * "a", "documents_at_most": 5}
    first = Hub(**fields).fingerprint()
    assert first == Hub(**fields).fingerprint()
    others = ({"revision": 40 * "b"}, {"documents_at_most": 6})
    assert all(Hub(**{**fields, **other}).fingerprint() != first for other in others)


def test_the_standard_library_is_a_corpus_without_tests_and_vendored_code():
    names = [str(path) for path in Stdlib().files()]
    assert any(name.endswith("json/decoder.py") for name in names)
    assert not any("/test/" in name or "site-packages" in name for name in names)


@pytest.mark.parametrize(("heldout", "calibration"), [(0.05, 0.05), (0.1, 0.2), (0.02, 0.2), (0.3, 0.3), (0.45, 0.4)])
def test_every_prefix_of_the_corpus_holds_the_shares(heldout, calibration):
    counts = {"train": 0, "calibration": 0, "heldout": 0}
    for index in range(2000):
        counts[split_of(index, heldout, calibration)] += 1
        seen = index + 1
        assert abs(counts["heldout"] - heldout * seen) <= 1 and abs(counts["calibration"] - calibration * seen) <= 2


def test_a_corpus_round_trips_through_its_name():
    assert build_corpus("stdlib") == Stdlib() == build_corpus({"stdlib": None})
    assert build_corpus({"files": {"paths": ["x"]}}) == Files(paths=("x",))


def test_a_name_that_is_no_text_is_refused_by_name(tmp_path):
    folder = os.fsencode(tmp_path)
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).write_text("wheat")
    with pytest.raises(ValueError, match=r"caf\\udce9.txt': its name is no valid UTF-8; rename it$"):
        expand(f"{tmp_path}/*.txt")
