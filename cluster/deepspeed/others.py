"""Workers on the other ranks of torchrun: what a stage that runs on rank 0 alone gives them to do.

While rank 0 is in :func:`helped`, every other rank is in :func:`serve`: it makes objects from import strings and payloads, and
calls their methods as it is told. What is said goes over gloo; tensors on a GPU go from card to card, over NCCL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from cluster.deepspeed.rank import join
from cluster.packing import Described, bytes_of, pack, unpack
from cluster.ray.targets import MISTAKES, Mistake, TargetFailed, load

FOREVER = timedelta(days=365)  # a block of a large model may take hours to solve
_helping: list[Other] = []  # in rank 0, while the others serve


class Other:
    """Another rank, seen from rank 0. It is told nothing new before it has given its last answer: who sends waits for who
    receives, and both would be sending."""

    def __init__(self, rank: int) -> None:
        self.rank, self.asked, self.made = rank, deque[Asked](), 0

    def make(self, target: str, payload: Mapping[str, Any]) -> RankWorker:
        send(("make", target, dict(payload)), self.rank)
        self.made += 1
        return RankWorker(self, self.made - 1)

    def ask(self, *call: Any) -> Asked:
        self.asked.append(Asked(self, ("call", *call)))
        if len(self.asked) == 1:
            send(self.asked[0].call, self.rank)
        return self.asked[-1]

    def answer(self) -> None:
        """Take the next answer, and ask on."""
        self.asked.popleft().answer = receive(self.rank)
        if self.asked:
            send(self.asked[0].call, self.rank)


class RankWorker:
    """An object that lives on another rank until this stage ends there."""

    near = True  # cards talk to each other

    def __init__(self, other: Other, number: int) -> None:
        self.other, self.number = other, number

    def call(self, method: str, *arguments: Any) -> Asked:
        return self.other.ask(self.number, method, arguments)


class Asked:
    """What a rank was asked for."""

    def __init__(self, other: Other, call: tuple) -> None:
        self.other, self.call, self.answer = other, call, None

    def result(self) -> Any:
        """What the method returned. A failure is a :class:`TargetFailed` that names the rank and the cause."""
        while self.answer is None:
            self.other.answer()
        failed, value = self.answer
        if failed:
            raise (Mistake if value["mistake"] else TargetFailed)(f"rank {self.other.rank}: {value['text']}")
        return value


@contextmanager
def helped(device: str) -> Iterator[None]:
    """On rank 0: the other ranks are workers for the duration. After an error they are left waiting: torchrun ends them."""
    join(device)
    _control()
    _helping.extend(Other(rank) for rank in range(1, dist.get_world_size()))
    yield
    for other in _helping:
        send(("end",), other.rank)
    _helping.clear()


def start_on_ranks(target: str, payloads: Iterable[Mapping[str, Any]]) -> list[RankWorker]:
    """A worker ``module:Class(payload)`` per payload, dealt out to the ranks that help."""
    return [_helping[number % len(_helping)].make(target, payload) for number, payload in enumerate(payloads)]


def helping() -> bool:
    """Whether other ranks wait for work."""
    return bool(_helping)


def serve(device: str) -> None:
    """On every other rank: do what rank 0 asks for, until it says that this is the end."""
    join(device)
    made: list[Any] = []
    failed: dict[int, Exception] = {}  # what could not be made says so when it is called
    while True:
        match receive(0):
            case ("make", target, payload):
                try:
                    made.append(load(target)(payload))
                except Exception as error:
                    failed[len(made)] = error
                    made.append(None)
            case ("call", number, method, arguments):
                send(_answer(made[number], failed.get(number), method, arguments), 0)
            case ("end",):
                return


def _answer(worker: Any, failure: Exception | None, method: str, arguments: tuple) -> tuple[bool, Any]:
    try:
        if failure:
            raise failure
        return False, getattr(worker, method)(*arguments)
    except Exception as error:
        return True, {"mistake": isinstance(error, MISTAKES), "text": f"{type(error).__name__}: {error}"}


@cache
def _control() -> Any:
    """The group of what is said; every rank makes it when it first helps or is helped."""
    return dist.new_group(backend="gloo", timeout=FOREVER)


def send(value: Any, rank: int) -> None:
    """Send anything that can be pickled; its tensors keep dtype, shape, kind of device and who shares them."""
    content, tensors = pack(value)
    packed = torch.frombuffer(content, dtype=torch.uint8)
    dist.send(torch.tensor([len(packed)]), rank, _control())
    dist.send(packed, rank, _control())
    for tensor in tensors:
        if tensor.numel():
            dist.send(bytes_of(tensor.detach().contiguous()), rank, None if tensor.is_cuda else _control())


def receive(rank: int) -> Any:
    """What :func:`send` sent from there."""

    def take(said: Described) -> torch.Tensor:
        tensor = said.empty()
        if tensor.numel():
            dist.recv(bytes_of(tensor), rank, None if said.on_card else _control())
        return tensor

    dist.recv(length := torch.zeros(1, dtype=torch.int64), rank, _control())
    packed = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(packed, rank, _control())
    return unpack(memoryview(packed.numpy()), take)
