"""Where the installed library does not fit, the sources are compiled once, outside the upload; or one line says why not."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tasks.calibrate.solvers import compiled
from tasks.calibrate.solvers.compiled import built


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "winnow"


def test_many_at_once_compile_it_once(cache):
    code = "from tasks.calibrate.solvers.compiled import built; print(built().stat().st_ino)"
    racing = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    inodes = {process.communicate()[0] for process in racing}
    assert len(inodes) == 1 and [process.returncode for process in racing] == [0, 0, 0]
    assert len(list(cache.glob("*.so"))) == 1 and not [path for path in cache.iterdir() if path.suffix not in (".so", ".lock")]


def test_what_does_not_load_is_compiled(cache, tmp_path, monkeypatch):
    foreign = tmp_path / "_settling.so"
    foreign.write_bytes(b"of another machine")
    monkeypatch.setattr(compiled, "find_spec", lambda name: type("Spec", (), {"origin": str(foreign)}))
    library = compiled.library.__wrapped__()
    assert isinstance(library, ctypes.CDLL) and library.settle_float and list(cache.glob("*.so"))


def test_no_compiler_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"settling.cpp is not compiled for .*; install g\+\+") as refused:
        built()
    assert "\n" not in str(refused.value)


def test_what_does_not_compile_is_one_line(cache, tmp_path, monkeypatch):
    broken = tmp_path / "settling.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(compiled, "SOURCE", broken)
    with pytest.raises(ValueError, match=r"does not compile settling.cpp: .*error") as refused:
        built()
    assert "\n" not in str(refused.value) and not list(cache.glob("*.so"))
