"""Tasks become tokens of which those that a model is to say count, and no others; what is no task is refused with its line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks.context import Context, Execution
from tasks.data.completions import encode, pieces
from tasks.data.corpora import build_corpus, dump_corpus
from tasks.data.rows import tasks_in
from tasks.data.tokenizer import CHAT_TEMPLATE, load_tokenizer
from tasks.data.tokens import COUNTED, STARTS, Tokens
from tasks.stage import stage_class
from tests.tasks import data_zoo

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

ASKED = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(data_zoo.write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def first(kind, path, rows, **fields):
    corpus = build_corpus({kind: {"paths": [write(path / "rows.jsonl", rows)], **fields}})
    return next(iter(corpus.documents()))


def learned(document, tokenizer) -> list[str]:
    """The stretches of text that count."""
    tokens, counts = encode(document, tokenizer)
    marked = "".join(
        ("\x00" if counted else "\x01") + tokenizer.decode([token]) for token, counted in zip(tokens, counts, strict=True)
    )
    runs = re.findall(r"(?:\x00[^\x00\x01]*)+", marked)
    return [run.replace("\x00", "") for run in runs]


def test_a_completion_and_the_end_of_text_count_and_the_prompt_does_not(tmp_path, tokenizer):
    document = first("completions", tmp_path, [{"prompt": "The wheat ", "completion": "falls into the river."}])
    assert learned(document, tokenizer) == ["falls into the river." + tokenizer.eos_token]
    tokens, _ = encode(document, tokenizer)
    assert tokenizer.decode(tokens[:-1]) == "The wheat falls into the river."


@pytest.mark.parametrize("scheme", ["first", "always", "normalizer"])
def test_a_completion_follows_its_prompt_though_the_tokenizer_puts_a_space_before_all_it_is_given(scheme, tmp_path):
    """As Llama 2's and Mistral's do. With a space in between, a model would learn to write one before every answer."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    texts = ["The wheat falls.", "Answer: 42", "a\n\nb", ". .a"]
    made.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    spaced = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    for prompt, completion in [("The wheat ", "falls."), ("Answer:", "42"), ("Answer:", " 42"), ("Answer:\n", "\nb")]:
        document = first("completions", tmp_path, [{"prompt": prompt, "completion": completion}])
        tokens, counts = encode(document, spaced)
        assert spaced.decode(tokens[:-1]) == prompt + completion
        assert tokens[: counts.index(True)] == spaced(prompt, add_special_tokens=False).input_ids


def test_a_chat_template_stands_around_what_is_said_and_only_answers_count(tmp_path, tokenizer):
    row = {"ask": "wheat?", "say": "chaff"}
    document = first("completions", tmp_path, [row], prompt="ask", completion="say", chat=True, template=TEMPLATE)
    assert pieces(document, tokenizer) == [("<user>wheat?</s>\n<assistant>", False), ("chaff</s>\n", True)]
    talk = [("system", "short"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    messages = [{"role": role, "content": said} for role, said in talk]
    document = first("chats", tmp_path, [{"messages": messages}], template=TEMPLATE)
    assert learned(document, tokenizer) == ["b</s>\n", "d</s>\n" + tokenizer.eos_token]
    assert "".join(piece for piece, _ in pieces(document, tokenizer)).endswith("<assistant>d</s>\n")  # e is not answered


def test_an_answer_that_ends_in_the_end_of_text_gets_no_second_one(tmp_path, tokenizer):
    template = TEMPLATE.replace("</s>", tokenizer.eos_token)
    document = first("chats", tmp_path, [{"messages": [ASKED, {"role": "assistant", "content": "b"}]}], template=template)
    assert learned(document, tokenizer) == ["b" + tokenizer.eos_token + "\n"]


def test_a_template_that_rewrites_what_was_said_is_refused(tmp_path, tokenizer):
    template = "{{ messages | length }}" + TEMPLATE
    messages = [{"role": role, "content": role} for role in ("user", "assistant")]
    document = first("chats", tmp_path, [{"messages": messages}], template=template)
    with pytest.raises(ValueError, match="rows.jsonl:1: the chat template writes what was said before message 2 otherwise"):
        encode(document, tokenizer)
    document = first("chats", tmp_path, [{"messages": messages}], template="{{ raise_exception('no') }}")
    with pytest.raises(ValueError, match=r"rows.jsonl:1: the chat template cannot write it out .no."):
        encode(document, tokenizer)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("completions", {"prompt": "a"}, "line 1: no field 'completion'; it has prompt"),
        ("completions", {"prompt": "a", "completion": 3}, "line 1: no text field 'completion'; it is 3"),
        ("completions", {"prompt": None, "completion": "b"}, "line 1: field 'prompt' is null"),
        ("completions", {"prompt": "a", "completion": ""}, "line 1: field 'completion' is empty; there is nothing to learn"),
        ("chats", {"messages": "a"}, "line 1: no list of messages 'messages'; it has messages"),
        (
            "chats",
            {"messages": [{"role": "judge", "content": "a"}]},
            "a message is {role: one of system, user, assistant, tool;",
        ),
        ("chats", {"messages": [{"role": "user"}]}, "a message is {role: one of system, user, assistant, tool; content: text}"),
        ("chats", {"messages": [ASKED]}, "line 1: no message of an assistant; there is nothing to learn"),
        ("chats", {"messages": [{"role": "assistant", "content": "a"}]}, "an assistant speaks first; a conversation begins"),
    ],
)
def test_a_row_that_is_no_task_is_refused_with_its_file_and_line(kind, row, message, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build_corpus({kind: {"paths": [path]}}).fingerprint()
    assert str(error.value).startswith(f"corpus file {path}, line 1: ") and "\n" not in str(error.value)


def test_other_files_and_a_template_for_nothing_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="a.txt: tasks are read from JSON lines, .jsonl"):
        build_corpus({"completions": {"paths": [str(tmp_path / "a.txt")]}}).fingerprint()
    with pytest.raises(ValueError, match="completions: template writes out chats; set chat: true, or leave it out"):
        build_corpus({"completions": {"paths": ["a.jsonl"], "template": TEMPLATE}})


def test_the_one_template_that_wrote_the_training_text_out_lies_beside_the_tokens(tmp_path):
    said = [f"{noun} {n}" for n in range(5) for noun in data_zoo.NOUNS]
    talks = [{"messages": [ASKED, {"role": "assistant", "content": each}]} for each in said]
    rows = [{"prompt": "a", "completion": each} for each in said]
    chats = {"chats": {"paths": [write(tmp_path / "talks.jsonl", talks)], "template": TEMPLATE}}
    plain = {"completions": {"paths": [write(tmp_path / "rows.jsonl", rows)]}}
    other = {"completions": {**plain["completions"], "chat": True, "template": TEMPLATE.replace("</s>", "")}}
    for name, corpus, found in [
        ("chats", chats, TEMPLATE),
        ("plain", plain, None),
        ("both", {"sequence": {"one": plain, "two": chats}}, TEMPLATE),
        ("several", {"sequence": {"one": chats, "two": other}}, None),
    ]:
        (tmp_path / name).mkdir()
        output, _ = prepare(tmp_path / name, corpus)
        file = output / CHAT_TEMPLATE
        assert (file.read_text() if file.exists() else None) == found, name


def test_the_fingerprint_knows_the_rows_and_not_the_place(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}]
    (tmp_path / "other").mkdir()
    one, same = (
        build_corpus({"completions": {"paths": [write(path / "r.jsonl", rows)]}}) for path in (tmp_path, tmp_path / "other")
    )
    assert one.fingerprint() == same.fingerprint() and build_corpus(dump_corpus(one)) == one
    write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "c"}])
    assert one.fingerprint() != same.fingerprint()


def prepare(tmp_path, corpus, **fields):
    stage = stage_class("prepare").model_validate({"corpus": corpus, "tokenizer": {"train": 300}, **fields})
    output = tmp_path / "data"
    output.mkdir()
    return output, stage.run(Context({}, output, tmp_path, Execution()))


def test_what_is_prepared_marks_each_document_and_each_token_that_counts(tmp_path):
    rows = [{"prompt": f"The {noun} number {n} ", "completion": f"rests {n}."} for n in range(10) for noun in data_zoo.NOUNS]
    output, _ = prepare(tmp_path, {"completions": {"paths": [write(tmp_path / "rows.jsonl", rows)]}})
    tokenizer, tokens = load_tokenizer(output / "tokenizer"), Tokens(output, "train")
    shard, marks = tokens.shards[0], tokens.marks[0]
    assert len(shard) == len(marks) and (marks & STARTS > 0).sum() == (shard == tokenizer.eos_token_id).sum()
    ends = np.flatnonzero(shard == tokenizer.eos_token_id)
    assert np.array_equal(np.flatnonzero(marks & STARTS)[1:], ends[:-1] + 1)
    said = tokenizer.decode(shard[marks & COUNTED > 0]).split(tokenizer.eos_token)[:-1]
    assert said and all(re.fullmatch(r"rests \d\.", each) for each in said)
    assert all(tasks_in(output, split) for split in ("train", "calibration", "heldout"))


def test_plain_text_is_prepared_as_ever_beside_tasks(tmp_path):
    rows = [{"prompt": f"The {noun} ", "completion": f"rests {n}."} for n in range(10) for noun in data_zoo.NOUNS]
    corpus = {
        "train": {"completions": {"paths": [write(tmp_path / "rows.jsonl", rows)]}},
        "heldout": data_zoo.write_texts(tmp_path / "texts", 3),
    }
    output, _ = prepare(tmp_path, corpus)
    assert tasks_in(output, "train") and not tasks_in(output, "heldout")
    assert json.loads((output / "heldout.jsonl").read_text().splitlines()[0]).keys() == {"name", "text"}


def test_a_tokenizer_without_a_chat_template_is_refused_before_any_work(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [ASKED, {"role": "assistant", "content": "b"}]}])
    with pytest.raises(ValueError, match="written out by a chat template, and the tokenizer has none; give the corpus a temp"):
        stage_class("prepare").model_validate({"corpus": {"chats": {"paths": [path]}}, "tokenizer": {"train": 300}})
    stage = stage_class("prepare").model_validate(
        {
            "corpus": {"chats": {"paths": [path]}},
            "tokenizer": {"checkpoint": str(data_zoo.write_tokenizer(tmp_path / "tokenizer"))},
        }
    )
    with pytest.raises(ValueError, match="written out by a chat template, and the tokenizer has none"):
        stage.inspect()
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    stage.inspect()
