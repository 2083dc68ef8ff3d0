"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from flows import cli


def winnow(*arguments: str) -> int:
    """The exit code of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["winnow", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return left.value.code or 0
