"""Every text survives the tokenizer, trained or reloaded."""

from __future__ import annotations

import pytest

from tasks.data.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer
from tests.tasks import data_zoo

TEXTS = ["def f(x):\n\treturn  x\n", "Ünïcode — 漢字 🌾 \u0000 end", " leading and trailing ", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([data_zoo.text(number) for number in range(8)], 300)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_its_size_is_the_one_asked_for_and_it_ends_texts(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == END_OF_TEXT and tokenizer(END_OF_TEXT).input_ids == [tokenizer.eos_token_id]


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert again.decode(again(TEXTS[1]).input_ids) == TEXTS[1]


def test_the_same_texts_train_the_same_tokenizer(tokenizer):
    again = train_tokenizer([data_zoo.text(number) for number in range(8)], 300)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_directory_without_one_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=f"no tokenizer in {tmp_path}") as refused:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)
