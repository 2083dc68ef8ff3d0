"""What was written down of a teacher teaches what the teacher does, but for float16, to any student of the same text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tasks.data.batch import IGNORED, Batch
from tasks.data.tokens import Sampler, Tokens
from tasks.methods import build
from tasks.train.engine import TorchEngine, adamw
from tasks.train.losses import Likely, as_written, divergence
from tasks.train.written import Description, Written, answer, bytes_per_token, write
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

LENGTH, ROWS, TEMPERATURE = 16, 12, 2.0


@pytest.fixture
def teacher():
    model = zoo.model("llama", layers=1).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that it has opinions
    return model


@pytest.fixture
def text(tmp_path) -> Tokens:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, zoo.VOCABULARY, (LENGTH * ROWS,), generator=draw).tolist()
    return data_zoo.write_tokens(tmp_path / "data", "train", ids)


def written(teacher, text, directory, k=8, rows=range(ROWS), logits_bytes=1 << 30) -> Written:
    directory.mkdir()
    said = Description(k, TEMPERATURE, LENGTH, zoo.VOCABULARY, ROWS, len(rows), False)
    size = write(directory, said, teacher, text, rows, logits_bytes, lambda done: None)
    payload = len(rows) * (LENGTH - 1) * bytes_per_token(k, zoo.VOCABULARY)
    assert payload < size < payload + 8 * len(rows) + 1024
    return Written(directory)


def test_two_tokens_and_the_rest_by_hand():
    """Teacher 1/2, 1/4 and 1/4 of the rest, student 1/4 each: 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2."""
    told = Likely(torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.25, 0.25]]).log().half())
    teacher_NL, student_NL = as_written(told, torch.zeros(1, 4), 1.0, True)
    assert divergence(student_NL, teacher_NL, 1.0).item() == pytest.approx(0.25 * math.log(2), rel=1e-3)
    teacher_NK, student_NK = as_written(told, torch.zeros(1, 4), 1.0, False)  # 2/3, 1/3 against 1/2, 1/2
    by_hand = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert divergence(student_NK, teacher_NK, 1.0).item() == pytest.approx(by_hand, rel=2e-2)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("k", [1, 8, zoo.VOCABULARY - 1, zoo.VOCABULARY, 999])
@pytest.mark.parametrize("logits_bytes", [None, 7 * 4 * zoo.VOCABULARY], ids=["whole", "chunks"])
def test_a_student_learns_what_it_would_of_the_teacher_itself_but_for_float16(teacher, text, tmp_path, k, tail, logits_bytes):
    files = written(teacher, text, tmp_path / "logits", k)
    batch = files.beside(Sampler(text, LENGTH, 4, seed=3)).at(0)
    labels = batch.tokens.clone()
    labels[0], labels[1:, :5] = IGNORED, IGNORED

    def learned(batch: Batch, **fields):
        student = zoo.model("llama", layers=1)
        objective = build("objectives", {"top_k": {"k": k, "tail": tail, "temperature": TEMPERATURE, **fields}})
        engine = TorchEngine(student, adamw(student))
        loss, metrics = objective.bind(None if fields else teacher, logits_bytes)(engine, batch)
        engine.backward(loss)
        return metrics["top_k_kl"].item(), torch.cat([value.grad.flatten() for value in student.parameters()])

    for each in (batch, replace(batch, labels=labels)):
        (live, gradient), (read, again) = learned(replace(each, likely=None, odds=None)), learned(each, precomputed=True)
        # T^2 * entropy / 2048, and the entropy is at most that of even odds
        assert abs(live - read) <= TEMPERATURE**2 * math.log(zoo.VOCABULARY) / 2048
        assert (gradient - again).norm() <= 1e-2 * gradient.norm()
        assert (live > 0) == (k > 1 or tail)  # of one token alone there is nothing to learn


def test_what_is_written_is_the_likeliest_best_first_and_all_that_is_left(teacher, text):
    batch = text.batch([0, 5], LENGTH)
    tokens, odds = answer(teacher, batch, 8, TEMPERATURE, chunk=5)
    chances_BTV = (teacher(batch.tokens).logits[:, :-1] / TEMPERATURE).softmax(-1)
    best = chances_BTV.topk(8, -1)
    assert torch.equal(tokens, best.indices) and odds.dtype == torch.float16
    torch.testing.assert_close(odds[..., :8].float().exp(), best.values, rtol=5e-3, atol=1e-6)
    torch.testing.assert_close(odds.float().exp().sum(-1), torch.ones(2, LENGTH - 1), rtol=5e-3, atol=0)


def test_students_of_any_order_and_every_rank_read_the_rows_that_they_see(teacher, text, tmp_path):
    files = written(teacher, text, tmp_path / "logits")
    for seed in (0, 7):
        drawn = files.beside(Sampler(text, LENGTH, 4, seed))
        whole, halves = drawn.at(1), [drawn.at(1, rank, 2) for rank in (0, 1)]
        assert torch.equal(whole.odds, torch.cat([half.odds for half in halves]))
        tokens, odds = answer(teacher, Batch(whole.tokens), 8, TEMPERATURE, chunk=99)
        assert torch.equal(whole.likely, tokens.int())
        torch.testing.assert_close(whole.odds, odds, rtol=0, atol=5e-3)
        assert torch.equal(whole.split(2)[1].likely, whole.likely[2:])


def test_in_shards_and_by_small_pieces_the_same_is_written(teacher, text, tmp_path, monkeypatch):
    whole = written(teacher, text, tmp_path / "whole")
    monkeypatch.setattr("tasks.train.written.SHARD_BYTES", 5 * (LENGTH - 1) * bytes_per_token(8, zoo.VOCABULARY))
    parts = written(teacher, text, tmp_path / "parts", logits_bytes=4 * zoo.VOCABULARY * 20)
    assert len(list((tmp_path / "parts").glob("logits-*"))) == 3
    for one, other in zip(whole.read(range(ROWS)), parts.read(range(ROWS)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_what_does_not_fit_is_refused_in_one_line(teacher, text, tmp_path):
    files = written(teacher, text, tmp_path / "logits", rows=[0, 3])
    assert files.read([3])[0].shape == (1, LENGTH - 1, 8)
    with pytest.raises(ValueError, match="no logits were written of row 1 of the training text; leave tokens out"):
        files.read([3, 1])
    with pytest.raises(ValueError, match="24 rows of 8 tokens, and the logits are of 12 rows of 16; teach on this text"):
        files.beside(Sampler(text, 8, 4, seed=0))
    with pytest.raises(
        ValueError, match=f"the odds of {zoo.VOCABULARY} tokens, the model of 65; teach with the model's vocabulary"
    ):
        Written(files.directory).require_vocabulary(65)
    shared = Written(files.directory)
    shared.__dict__["description"] = replace(files.description, together=True)
    with pytest.raises(ValueError, match="would let those see each other; leave precomputed out"):
        shared.shares_rows(apart=False)


def test_a_student_recovers_from_what_a_stage_wrote_as_from_the_teacher_and_a_second_reads_the_same_files(tmp_path):
    work = Workshop(tmp_path)
    data = work.data()
    dense = work.make("pretrain", {"model": LLAMA, **TRAINING}, data=data)
    pruned = work.make("prune", {"method": "magnitude", "sparsity": 0.5, **CALIBRATION}, data=data, model=dense)
    logits = work.make("teach", {"k": 16, "length": TRAINING["length"]}, data=data, model=dense)
    assert logits.metrics["taught_tokens"] == data.metrics["train_tokens"] // 32 * 32
    fields = {**TRAINING, "objective": {"top_k": {"k": 16}}}
    live = work.make("recover", fields, data=data, model=pruned, teacher=dense)
    fields = {**TRAINING, "objective": {"top_k": {"k": 16, "precomputed": True}}}
    read, other = (work.make("recover", {**fields, "seed": seed}, data=data, model=pruned, logits=logits) for seed in (0, 1))
    assert read.metrics["training_loss"] == pytest.approx(live.metrics["training_loss"], rel=1e-3)
    assert read.metrics["sparsity"] == live.metrics["sparsity"] and other.key != read.key
    assert read.metrics["training_flops"] < live.metrics["training_flops"]  # no teacher ran


def test_as_a_compiled_kernel_it_is_the_same(teacher, text, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.train.compiled.BACKEND", "aot_eager")
    batch = written(teacher, text, tmp_path / "logits").beside(Sampler(text, LENGTH, 4, seed=3)).at(0)
    student = zoo.model("llama", layers=1)
    engine, objective = TorchEngine(student, adamw(student)), build("objectives", {"top_k": {"k": 8, "precomputed": True}})
    plain, compiled = (objective.bind(None, None, compile)(engine, batch)[0].item() for compile in (False, True))
    assert plain == pytest.approx(compiled, rel=1e-6)
