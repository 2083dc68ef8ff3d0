"""What runs on a worker: import a target, call it, and return a failure as text.

Ray is not needed here, nor imported: the same functions run under a Ray task, a rank of Ray Train, or a test.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any

from cluster.warm.asking import call

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ARENAS = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8  # malloc.h
MISTAKES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    NotImplementedError,
)


class TargetFailed(RuntimeError):
    """What a target raised, as text: the driver need not have the class."""


class Mistake(TargetFailed):
    """One that would come back on every try, so nobody tries again."""


def load(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, function = target.partition(":")
    if not function:
        raise ValueError(f"target '{target}' should be 'module:function'")
    return getattr(importlib.import_module(module), function)


def run_target(target: str, payload: dict, settings: dict[str, str]) -> tuple[bool, Any]:
    """Runs on the worker. Errors come back as text, beside a word on whether trying again may help."""
    _prepare(settings)
    try:
        return False, load(target)(payload)
    except Exception as error:
        return True, {"mistake": isinstance(error, MISTAKES), "text": _text(error)}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_warm(target: str, payload: dict, settings: dict[str, str]) -> tuple[bool, Any]:
    """Runs on the worker, and has a copy of this machine's warm process do the work where there is one: what the work imports
    is there already."""
    begun, answer = call(f"{__name__}:{run_target.__name__}", [target, payload, settings], {**os.environ, **settings})
    return answer if begun else run_target(target, payload, settings)


def run_warm_rank(target: str, payload: dict, settings: dict[str, str]) -> tuple[bool, Any]:
    """``run_single_rank`` likewise."""
    begun, answer = call(f"{__name__}:{run_single_rank.__name__}", [target, payload, settings], {**os.environ, **settings})
    return answer if begun else run_single_rank(target, payload, settings)


class Host:
    """Keeps an object on a worker and calls its methods; failures are returned as those of a target are."""

    def __init__(self, target: str, payload: dict, settings: dict[str, str]) -> None:
        _prepare(settings)
        self._target, self._payload, self._kept = target, payload, None

    def call(self, method: str, arguments: tuple[bytes, list]) -> tuple[bool, Any]:
        """``arguments`` and what the method returns are wrapped."""
        try:
            if self._kept is None:  # here and not above, so that its failure has a caller to go to
                self._kept = load(self._target)(self._payload)
            return False, wrap(getattr(self._kept, method)(*unwrap(arguments)))
        except Exception as error:
            return True, {"mistake": isinstance(error, MISTAKES), "text": _text(error)}


def wrap(value: Any) -> tuple[bytes, list]:
    """Its tensors as arrays of bytes: those Ray puts into shared memory as they are, where it would pickle tensors."""
    from cluster.packing import bytes_of, pack

    content, tensors = pack(value)
    return bytes(content), [bytes_of(tensor.detach().cpu().contiguous()).numpy() for tensor in tensors]


def unwrap(wrapped: tuple[bytes, list]) -> Any:
    """What was wrapped; its tensors are copies, on the kind of device that they came from."""
    import numpy as np
    import torch

    from cluster.packing import Described, bytes_of, unpack

    content, arrays = wrapped

    def take(said: Described) -> torch.Tensor:
        tensor, array = said.empty(), arrays[said.number]
        if said.on_card:
            bytes_of(tensor).copy_(torch.from_numpy(np.array(array)))
        else:
            np.copyto(bytes_of(tensor).numpy(), array)
        return tensor

    return unpack(content, take)


def run_single_rank(target: str, payload: dict, settings: dict[str, str]) -> tuple[bool, Any]:
    """Runs on the worker, which ends with it and so gives back what torch holds."""
    import torch.distributed

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    _prepare({**settings, **place, "LOCAL_WORLD_SIZE": "1"})
    backend = "gloo" if settings.get("DS_ACCELERATOR") == "cpu" else "nccl"
    alone = torch.distributed.HashStore()  # the usual one listens on every interface
    torch.distributed.init_process_group(backend, store=alone, rank=0, world_size=1)
    return run_target(target, payload, settings)


def run_rank(config: dict[str, Any]) -> None:
    """Runs on every rank of Ray Train, after the process group stands. Ray marks the lines that follow with the name."""
    for stream in (sys.stdout, sys.stderr):
        print(f":actor_name:rank {os.environ['RANK']}", file=stream, flush=True)
    failed, value = run_target(config["target"], config["payload"], config["settings"])
    if failed:
        raise (Mistake if value["mistake"] else TargetFailed)(value["text"])


def _prepare(settings: dict[str, str]) -> None:
    """What the environment would have done, in a process that runs already. Workers are shared by the tasks of a job: a
    torch that is here is told its threads; one heap, and huge pages once torch uses them, stay for the process's life."""
    os.environ.update(settings)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    if ARENAS in settings:  # glibc reads the variable before the first line of Python
        with suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, int(settings[ARENAS]))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(settings[THREADS[0]]))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
