"""What travels to a cluster of somebody else's: the product, and nothing else that lies in the checkout.

An allow-list, because what a user keeps beside the sources (models, data, keys) cannot be foreseen. Files that git does not
know travel too where they are sources: a method that was written a minute ago is one file on a shelf. The compiled sweep
goes along, and is used there by a Python that it fits.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("flows", "tasks", "cluster", "dashboards")
KINDS = (".py", ".cpp")
BESIDES = ("pyproject.toml", "tasks/calibrate/solvers/_settling.*.so")


def product(checkout: Path) -> list[Path]:
    """The files of a checkout that a job needs, from its root."""
    found = {path for package in PACKAGES for path in (checkout / package).rglob("*") if path.suffix in KINDS}
    found |= {path for pattern in BESIDES for path in checkout.glob(pattern)}
    files = (path.relative_to(checkout) for path in found if path.is_file() and not path.is_symlink())
    return sorted(file for file in files if not any(part.startswith(".") or part == "__pycache__" for part in file.parts))


def told(checkout: Path) -> str:
    """How much it is, in words."""
    files = product(checkout)
    return f"{len(files)} files, {sum((checkout / file).stat().st_size for file in files) / 1e6:.1f} MB"


@contextmanager
def staged(checkout: Path) -> Iterator[Path]:
    """A folder that holds just these. Ray names a package by its content, so what is there is not sent again."""
    with tempfile.TemporaryDirectory(prefix="winnow-upload-") as folder:
        for file in product(checkout):
            target = Path(folder) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / file, target)
        yield Path(folder)
