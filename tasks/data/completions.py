"""Corpora of tasks: JSON lines in which a model is told something and is to learn what comes of it, and that alone.

A row is a prompt and its completion, or a conversation. What a document says in turns becomes pieces of text, of which those
that the model is to say itself count in the loss: the completion, what the assistant says. A conversation is written out by
a chat template, the tokenizer's unless the corpus has one; the template is asked what stands before each answer and what
after it, so it needs no marks of its own in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tasks.data.corpus import VALIDATE_BYTES, Corpus, shared_folder
from tasks.data.digests import Digests
from tasks.data.documents import Document, Turn, digest, kind_of, read_rows, text_of
from tasks.data.files import expand, file_digest, read, total_bytes
from tasks.data.place import Pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPT, COMPLETION = "prompt", "completion"  # the roles of a row that no template writes out
AS_READ = ("as read", b"2")  # the number is raised when rows come out as other tokens
SPEAKERS = ("system", "user", "assistant", "tool")
BEFORE = ("\n", ".", "a")  # what a text is read behind: the first with which it shares no token


class Lines(Corpus):
    """Root of the corpora whose rows are tasks. A document is named as one of ``files`` is."""

    paths: tuple[Pattern, ...] = Field(min_length=1)
    """Paths or globs of .jsonl files, local or ``s3://...``, packed or not."""
    template: str | None = None
    """A chat template in Jinja; the tokenizer's unless given."""

    @property
    def talks(self) -> bool:
        """Whether a chat template writes the rows out."""
        return True

    @property
    def templated(self) -> bool:
        """Whether the tokenizer has to bring the template."""
        return self.talks and self.template is None

    def turns(self, where: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        raise NotImplementedError

    def files(self) -> list[str]:
        found = sorted({path for pattern in self.paths for path in expand(pattern)})
        for path in found:
            if kind_of(path) != ".jsonl":
                raise ValueError(f"corpus file {path}: tasks are read from JSON lines, .jsonl")
        return found

    def documents(self) -> Iterator[Document]:
        files = self.files()
        root = shared_folder(files)
        return (document for path in files for document in self._parse(path, root))

    def fingerprint(self, digests: Digests | None = None) -> str:
        files = self.files()
        root = shared_folder(files)
        if total_bytes(files) > VALIDATE_BYTES:
            for path in files:  # the first row of each; the rest when it is read
                next(self._parse(path, root), None)
            return digest([AS_READ, *((path.removeprefix(root), file_digest(path, digests or Digests())) for path in files)])
        contents = {path: read(path) for path in files}
        for path, content in contents.items():
            for _ in self._parse(path, root, content):
                pass
        return digest([AS_READ, *((path.removeprefix(root), content) for path, content in contents.items())])

    def describe(self) -> str:
        return f"files {', '.join(self.paths)}"

    def _parse(self, path: str, root: str, content: bytes | None = None) -> Iterator[Document]:
        for number, row in read_rows(path, "corpus file", content):
            turns = self.turns(f"corpus file {path}, line {number}", row)
            yield Document(f"{path}:{number}".removeprefix(root), "\n".join(said for _, said in turns), turns, self.template)


class Completions(Lines):
    """Prompts and their completions, a row each: the loss is on the completion alone. The prompt is read as it stands, with
    nothing between it and the completion; ``chat`` writes them out as what a user says and an assistant answers."""

    prompt: str = "prompt"
    """Key of what the model is given."""
    completion: str = "completion"
    """Key of what it is to say."""
    chat: bool = False
    """Whether a chat template writes the row out."""

    @model_validator(mode="after")
    def _template_for_chat(self) -> Completions:
        if self.template and not self.chat:
            raise ValueError("template writes out chats; set chat: true, or leave it out")
        return self

    @property
    def talks(self) -> bool:
        return self.chat

    def turns(self, where: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        keys = (self.prompt, self.completion)
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"{where}: no field {missing[0]!r}; it has {', '.join(row) or 'none'}")
        asked, said = (text_of(row[key], where, key, "refuse") for key in keys)
        assert asked is not None and said is not None, "nulls are refused"
        if not said:
            raise ValueError(f"{where}: field {self.completion!r} is empty; there is nothing to learn")
        return (("user", asked), ("assistant", said)) if self.chat else ((PROMPT, asked), (COMPLETION, said))


class Chats(Lines):
    """Conversations, a row each, as lists of ``{role: ..., content: ...}``: the loss is on what the assistant says."""

    field: str = "messages"
    """Key that holds the conversation."""

    def turns(self, where: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        messages = row.get(self.field)
        if not isinstance(messages, list):
            raise ValueError(f"{where}: no list of messages {self.field!r}; it has {', '.join(row) or 'none'}")
        turns = []
        for message in messages:
            if not (isinstance(message, dict) and message.get("role") in SPEAKERS and isinstance(message.get("content"), str)):
                choices = ", ".join(SPEAKERS)
                raise ValueError(f"{where}: a message is {{role: one of {choices}; content: text}}, got {message!r:.60}")
            turns.append((message["role"], text_of(message["content"], where, "content", "refuse")))
        if not any(role == "assistant" for role, _ in turns):
            raise ValueError(f"{where}: no message of an assistant; there is nothing to learn")
        if turns[0][0] == "assistant":
            raise ValueError(f"{where}: an assistant speaks first; a conversation begins with what it is told")
        return tuple(turns)


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool] | None]:
    """The tokens of a document, an end of text after them, and which of a task's count: the end too, which is not written
    twice where an answer ends in one. Of plain text all count."""
    if not document.turns:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False).input_ids
        return [*ids, tokenizer.eos_token_id], None
    tokens: list[int] = []
    counts: list[bool] = []
    for piece, counted in pieces(document, tokenizer):
        ids = _going_on(piece, tokenizer) if tokens else _ids(piece, tokenizer)
        tokens, counts, last = [*tokens, *ids], [*counts, *[counted] * len(ids)], ids
    ended = tokenizer.eos_token_id in last
    return (tokens, counts) if ended else ([*tokens, tokenizer.eos_token_id], [*counts, True])


def _ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _going_on(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens of a text that others stand before. Some tokenizers, Llama 2's for one, put a space before whatever they are
    given, which would come between a prompt and its completion: such a text is read behind another, of which nothing stays."""
    for before in BEFORE if _puts_a_space_first(tokenizer) else ():
        first, both = _ids(before, tokenizer), _ids(before + text, tokenizer)
        if both[: len(first)] == first:
            return both[len(first) :]
    return _ids(text, tokenizer)


@lru_cache(maxsize=1)
def _puts_a_space_first(tokenizer: PreTrainedTokenizerFast) -> bool:
    return _ids("\na", tokenizer) != _ids("\n", tokenizer) + _ids("a", tokenizer)


def pieces(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, bool]]:
    """The text of a task, cut where what counts begins and ends. What follows the last answer is left out."""
    if document.turns[0][0] == PROMPT:
        return [(said, role == COMPLETION) for role, said in document.turns]
    messages = [{"role": role, "content": said} for role, said in document.turns]
    found, done = [], ""
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _written(tokenizer, document, messages[:place], True)
            after = _written(tokenizer, document, messages[: place + 1], False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ValueError(
                    f"document {document.name}: the chat template writes what was said before message {place + 1} otherwise "
                    "once it is answered; give a template that does not"
                )
            found += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
    return found


def _written(tokenizer: Any, document: Document, messages: list[dict[str, str]], asks: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=document.template, tokenize=False, add_generation_prompt=asks
        )
    except TemplateError as error:  # its syntax, or what it says itself of a conversation it does not want
        raise ValueError(f"document {document.name}: the chat template cannot write it out ({error})") from None
