"""What a batch holds goes with its sequences, and which tokens count is known to whoever asks."""

import torch

from tasks.data.batch import IGNORED, Batch, joined

TOKENS = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
LABELS = torch.tensor([[IGNORED, IGNORED, 7, 8], [IGNORED, 2, 3, IGNORED]])


def test_without_labels_every_token_but_the_first_is_predicted():
    batch = Batch(TOKENS)
    assert batch.predicted == 6 and batch.following.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert batch.mean(torch.tensor([[1, 0, 0], [1, 1, 1]])).tolist() == [torch.tensor(1 / 3).item(), 1.0]


def test_with_labels_those_that_have_one_are():
    batch = Batch(TOKENS, LABELS)
    assert batch.predicted == 4 and batch.following.tolist() == [[IGNORED, 7, 8], [2, 3, IGNORED]]
    assert batch.mean(torch.tensor([[9, 1, 0], [1, 1, 9]])).tolist() == [0.5, 1.0]
    assert Batch(TOKENS, torch.full_like(TOKENS, IGNORED)).mean(torch.ones(2, 3)).tolist() == [0, 0]


def test_pieces_put_together_are_the_batch():
    for batch in (Batch(TOKENS), Batch(TOKENS, LABELS)):
        pieces = batch.split(1)
        again = joined(pieces)
        assert [len(piece) for piece in pieces] == [1, 1] and torch.equal(again.tokens, TOKENS)
        assert again.labels is batch.labels is None or torch.equal(again.labels, LABELS)
        assert batch[torch.tensor([1, 1, 0])].tokens[:, 0].tolist() == [1, 1, 5]


def test_joined_with_plain_text_prompts_stay_unlearned_and_of_the_text_every_token_counts():
    plain, task = Batch(TOKENS), Batch(TOKENS, LABELS)
    assert joined([plain, task]).labels.equal(torch.cat([TOKENS, LABELS])) and joined([plain, plain]).labels is None
    assert joined([task, plain]).predicted == task.predicted + plain.predicted


def test_places_begin_anew_with_each_document_of_a_row():
    documents = torch.tensor([[1, 1, 2], [1, 0, 0]])
    assert Batch(TOKENS[:2, :3], documents=documents).asked["position_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert Batch(TOKENS).asked.keys() == {"input_ids"}
