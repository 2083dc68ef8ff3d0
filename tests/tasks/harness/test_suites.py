"""Files of questions are read as they are published, and what is no such file is refused in one line with its place."""

from __future__ import annotations

import json

import pytest

from tasks.harness.suites import Exam, OpenBook, Questions, Stories
from tasks.methods import validate


def write(path, *rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def suite(kind, path):
    return validate(kind, str(path), "suite")


def test_plain_lines_ask_a_question_or_what_they_say(tmp_path):
    path = write(
        tmp_path / "q.jsonl",
        {"question": "What falls?", "answer": "chaff", "aliases": ["husks", "chaff"], "evidence": "Chaff falls."},
        {"context": "Q: what? A:", "answer": "that"},
    )
    assert suite(Questions, path).rows() == [
        {"ask": "Question: What falls?\nAnswer:", "accepted": ["chaff", "husks"], "evidence": "Chaff falls."},
        {"ask": "Q: what? A:", "accepted": ["that"], "evidence": ""},
    ]


def test_triviaqa_is_read_with_the_first_page_and_the_first_result(tmp_path):
    row = {
        "question": "Which?",
        "answer": {"value": "Onion", "aliases": ["Onions"]},
        "entity_pages": {"wiki_context": ["page one", "page two"]},
        "search_results": {"search_context": ["result one", "result two"]},
    }
    bare = {**row, "entity_pages": {"wiki_context": []}, "search_results": None}
    rows = suite(Questions, write(tmp_path / "t.jsonl", row, bare)).rows()
    assert [found["evidence"] for found in rows] == ["page one\nresult one", ""]
    assert rows[0]["accepted"] == ["Onion", "Onions"]


def test_freebaseqa_is_read_with_the_answers_of_every_parse(tmp_path):
    parses = [{"Answers": [{"AnswersName": ["ann"]}]}, {"Answers": [{"AnswersName": ["ann", "anna"]}]}]
    path = write(tmp_path / "f.json", {"Questions": [{"RawQuestion": "Who?", "Parses": parses}]})
    assert suite(Questions, path).rows() == [{"ask": "Question: Who?\nAnswer:", "accepted": ["ann", "anna"], "evidence": ""}]


def exam(folder) -> Exam:
    for subject in ("high_school_physics", "law"):
        write(folder / "dev" / f"{subject}_dev.csv", '"What, then?",a,b,c,d,A', "Two?,a,b,c,d,B")
        write(folder / "test" / f"{subject}_test.csv", '"A ""quoted"" one",w,x,y,z,D')
    return suite(Exam, folder)


def test_an_exam_asks_what_is_in_test_and_shows_what_is_in_dev(tmp_path):
    rows = exam(tmp_path).rows()
    assert [row["subject"] for row in rows] == ["high school physics", "law"]
    assert rows[0]["question"] == 'A "quoted" one' and rows[0]["choices"] == ["w", "x", "y", "z"] and rows[0]["letter"] == "D"
    assert [example["question"] for example in rows[0]["examples"]] == ["What, then?", "Two?"]


def test_a_fingerprint_is_of_what_the_files_hold_and_not_of_where_they_lie(tmp_path):
    first, second = exam(tmp_path / "one").fingerprint(), exam(tmp_path / "two").fingerprint()
    write(tmp_path / "two" / "dev" / "law_dev.csv", "Other?,a,b,c,d,A")
    assert first == second != exam_again(tmp_path / "two").fingerprint()


def exam_again(folder) -> Exam:
    return suite(Exam, folder)


def test_stories_are_texts_with_highlights_or_lines(tmp_path):
    write(tmp_path / "s" / "a.story", "Some text.", "", "More.", "", "@highlight", "", "First point", "@highlight", "Second")
    assert suite(Stories, tmp_path / "s" / "*.story").rows() == [
        {"document": "Some text.\n\nMore.", "summary": "First point\nSecond"}
    ]
    path = write(tmp_path / "s.jsonl", {"document": "text", "summary": "short", "id": 3})
    assert suite(Stories, path).rows() == [{"document": "text", "summary": "short"}]


@pytest.mark.parametrize(
    "kind, file, content, complaint",
    [
        (Questions, "q.jsonl", '{"answer": "x"}', "q.jsonl, line 1: question or context is no text, got None"),
        (Questions, "q.jsonl", '{"question": "x", "answer": 3}', "line 1: answer is no text, got 3"),
        (Questions, "q.jsonl", '{"question": "x", "answer": "y", "aliases": [1]}', r"aliases are texts, got \[1\]"),
        (Questions, "q.json", '{"questions": []}', "not as FreebaseQA's are .KeyError 'Questions'"),
        (Questions, "q.jsonl", "", "there is no question in it"),
        (OpenBook, "q.jsonl", '{"question": "x", "answer": "y"}', "question 1 has no evidence to answer from"),
        (Stories, "a.story", "no summary", "a text and @highlight before each sentence"),
        (Stories, "a.jsonl", '{"document": "x"}', "line 1: document and summary are needed, as texts"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(kind, file, content, complaint, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        suite(kind, tmp_path / file).fingerprint()
    assert "\n" not in str(refusal.value)


def test_an_exam_without_examples_or_with_another_letter_is_refused(tmp_path):
    exam(tmp_path)
    write(tmp_path / "test" / "law_test.csv", "Question?,a,b,c,d,E")
    with pytest.raises(ValueError, match="law_test.csv, row 1: a question, four choices and A, B, C or D are needed"):
        suite(Exam, tmp_path).rows()
    write(tmp_path / "test" / "art_test.csv", "Question?,a,b,c,d,A")
    write(tmp_path / "test" / "law_test.csv", "Question?,a,b,c,d,A")
    with pytest.raises(ValueError, match="there is no dev/art_dev.csv"):
        suite(Exam, tmp_path).rows()
    with pytest.raises(ValueError, match="does not exist"):
        suite(Exam, tmp_path / "nowhere").rows()
