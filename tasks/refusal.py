"""Tells errors in a user's input from bugs, ours or a library's: both come as a ValueError.

An input is refused by a ``raise`` in our code: it is the innermost frame of the traceback. NumPy, torch and the standard
library raise ValueErrors of their own for shapes that do not fit or a wrong call, from their own files or, being written in C,
out of the middle of a line of ours. Those are bugs: they keep their traceback and may be tried again. A validation error of
pydantic for an object that our code asked for counts as a refused input.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dis import opmap
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(ROOT / package for package in ("cluster", "dashboards", "flows", "tasks"))


def refused(error: BaseException) -> bool:
    """Whether an error refuses a user's input, in one line that names what to change."""
    if not isinstance(error, (ValueError, FloatingPointError)):
        return False
    frames = list(_frames(error.__traceback__))
    if _of_pydantic(type(error).__module__):
        while frames and _of_pydantic(frames[-1].tb_frame.f_globals.get("__name__", "")):
            frames.pop()
        return bool(frames) and _is_ours(frames[-1])
    return bool(frames) and _is_ours(frames[-1]) and _raises(frames[-1])


def disk_full(error: BaseException) -> str | None:
    """Where an error says that a disk is full, " (file)" or "" as far as it tells which file; libraries have words of
    their own for it. A file that may not get so large counts as one. None for any other error."""
    if (isinstance(error, OSError) and error.errno == errno.EFBIG) or "File too large" in str(error):
        return " (files may not be so large there: ulimit -f, or the file system's own limit)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        told = str(error.strerror or "").partition("disk full: ")[2]  # as the store counts before it copies
        return f" ({': '.join(filter(None, (error.filename, told)))})" if error.filename else ""
    words = ("No space left on device", " requested and ")  # of safetensors; of NumPy, for a write that fell short
    return "" if any(word in str(error) for word in words) else None


def vanished(error: BaseException, store: str) -> str | None:
    """The file of a store at ``store`` that an error finds missing, be it one that a library opened; None for any other
    error. A stage reads what was checked when it began, so somebody took it away since."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | os.PathLike):
        return None
    return os.fspath(error.filename) if Path(error.filename).is_relative_to(store) else None


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    """From the outermost to the one that raised."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_ours(trace: TracebackType) -> bool:
    file = Path(trace.tb_frame.f_code.co_filename).resolve()
    return any(file.is_relative_to(package) for package in OURS)


def _raises(trace: TracebackType) -> bool:
    """Whether the frame stopped at a ``raise`` of its own, and not in a call or an operator."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]


def _of_pydantic(module: str) -> bool:
    return module.partition(".")[0] in ("pydantic", "pydantic_core")
