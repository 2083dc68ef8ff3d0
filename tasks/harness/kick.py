"""LLM-KICK's offline tasks as ours: what is asked, and how what is said is scored.

The wording is our own, so numbers compare among models and not with the paper's. Only what a model says is scored, never the
prompt before it; nothing said is wrong; every question counts once; decoding is greedy for each model, the dense one too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.harness.answers import contained, contains, exact_match, f1, precision_in, recall
from tasks.harness.forms import Form, Row, generated
from tasks.harness.suites import LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUMMARY_TOKENS = 256  # the 150 words that are asked for
LETTER_TOKENS = 4  # of " B", "(B)." and the like


def letter(said: str) -> str | None:
    """The letter that is chosen: the first thing said, whatever signs stand around it."""
    found = re.match(rf"[^A-Za-z0-9]*([{LETTERS}])(?![A-Za-z0-9])", said)
    return found[1] if found else None


def rouge(said: str, summary: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L over stemmed words: our substitute for the paper's judge, a model of OpenAI's."""
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(summary, said)
    return {name: float(score.fmeasure) for name, score in found.items()}


def _factoid(row: Row, said: str) -> dict[str, float]:
    return {"acc": float(contains(said, row["accepted"]))}


def _recalled(row: Row, said: str) -> dict[str, float]:
    accepted = row["accepted"]
    return {
        "exact_match": float(exact_match(said, accepted)),
        "containment": float(contained(said, accepted)),
        "f1": f1(said, accepted),
    }


def _chosen(row: Row, said: str) -> dict[str, float]:
    return {"acc": float(letter(said) == row["letter"])}


def _summed_up(row: Row, said: str) -> dict[str, float]:
    return rouge(said, row["summary"])


def _faithful(row: Row, said: str) -> dict[str, float]:
    answer = said.strip().partition("\n\n")[0]
    return {"recall": recall(answer, row["accepted"]), "k_precision": precision_in(answer, row["evidence"])}


SHORT: dict[str, type] = {"context": str, "accepted": list}
FACTOID = generated(SHORT, ("acc",), _factoid)
RECALL = generated(SHORT, ("exact_match", "containment", "f1"), _recalled)
LETTER = generated({"context": str, "letter": str}, ("acc",), _chosen, tokens=LETTER_TOKENS)
SUMMARY = generated(
    {"context": str, "summary": str}, ("rouge1", "rouge2", "rougeL"), _summed_up, tokens=SUMMARY_TOKENS, until=()
)


def faithful(tokens: int) -> Form:
    """Answers of at most so many tokens, to be drawn from a text. Their first paragraph counts, which empty lines before it
    do not end."""
    keys: dict[str, type] = {"context": str, "accepted": list, "evidence": str}
    return generated(keys, ("recall", "k_precision"), _faithful, tokens=tokens, until=())


def closed(rows: list[Row]) -> list[Row]:
    """Questions to be answered from what the model knows."""
    told = "Answer the question with a few words.\n\n"
    return [{"context": told + row["ask"], "accepted": row["accepted"]} for row in rows]


def opened(rows: list[Row], characters: int) -> list[Row]:
    """Questions after the first ``characters`` of a text that has the answer."""
    told = "Answer the question with a few words, from the text above.\n\n"
    return [
        {
            "context": f"{row['evidence'][:characters]}\n\n{told}{row['ask']}",
            "accepted": row["accepted"],
            "evidence": row["evidence"][:characters],
        }
        for row in rows
    ]


def examined(rows: list[Row], shots: int, tokens: int, count: Callable[[str], int]) -> list[Row]:
    """Exam questions after as many of the subject's examples, at most ``shots``, as fit in ``tokens``; ``count`` tells how
    many a text has."""
    asked = []
    for row in rows:
        head = f"Multiple-choice questions about {row['subject']}, with their answers.\n\n"
        examples = [f"{_posed(example)} {example['letter']}\n\n" for example in row["examples"][:shots]]
        question = _posed(row)
        while examples and count(head + "".join(examples) + question) + LETTER_TOKENS > tokens:
            examples.pop()
        asked.append({"context": head + "".join(examples) + question, "letter": row["letter"]})
    return asked


def _posed(row: Row) -> str:
    choices = "".join(f"{name}. {choice}\n" for name, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question']}\n{choices}Answer:"


def summarised(rows: list[Row], cut: Callable[[str], str]) -> list[Row]:
    """Stories, ``cut`` to what the model can read, and the wish for a summary with the qualities the paper's judge grades."""
    wish = "Sum up the text above in less than 150 words: coherent, true to it, fluent, and with what matters.\n\nSummary:"
    return [{"context": f"{cut(row['document'])}\n\n{wish}", "summary": row["summary"]} for row in rows]


def first_tokens(text: str, count: int, tokenizer: PreTrainedTokenizerFast) -> str:
    """The beginning of a text, as far as its first ``count`` tokens reach."""
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    return text[: ends[count - 1][1]] if len(ends) > count else text


def in_chat(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """The same, each as a user's message in the tokenizer's chat template. Raises ValueError where it has none."""
    if not tokenizer.chat_template:
        raise ValueError("chat is asked for, and the tokenizer has no chat template; leave chat out")

    def message(text: str) -> str:
        said = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))

    return [{**row, "context": message(row["context"])} for row in rows]
