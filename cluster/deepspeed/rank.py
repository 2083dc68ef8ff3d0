"""One rank of torch.distributed: join the existing process group, or make one of a single rank, and exit cleanly."""

from __future__ import annotations

import atexit
import os
import sys

import torch
import torch.distributed as dist


def join(device: str | torch.device) -> None:
    """Join a process group, with the environment variables that DeepSpeed needs."""
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("DS_ACCELERATOR", torch.device(device).type)
    if dist.is_initialized():
        return
    backend, bound = "gloo", {}
    if torch.device(device).type == "cuda":  # NCCL is told which GPU it is bound to, and need not guess
        backend, bound = "nccl", {"device_id": torch.device("cuda", torch.cuda.current_device())}
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, **bound)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **bound)
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())  # else gloo's threads may abort us


def leave(code: int) -> None:
    """End this rank at once. An interpreter that shuts down while gloo's threads still want it is aborted now and then
    (``terminate called without an active exception``), and the exit code of a finished rank with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
