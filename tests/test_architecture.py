"""The laws of the tree: which way imports point, where each library may appear, and how large a file may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_origin

import pytest

from tasks.methods import SHELVES, load, names, of
from tasks.stage import STAGES, stage_class

ROOT = Path(__file__).resolve().parent.parent
OURS = ("flows", "tasks", "cluster", "dashboards")
TOP = {
    "pyproject.toml",
    "README.md",
    "Makefile",
    "LICENSE",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "flows",
    "tasks",
    "cluster",
    "dashboards",
    "infra",
    "tests",
    "docs",
}
FORBIDDEN_NAMES = ("utils", "util", "helpers", "base", "common", "misc")
LIBRARIES = {  # where a library may be imported: path prefixes
    "ray": ("cluster/ray/", "cluster/servers/services.py"),
    "mlflow": ("cluster/tracking.py", "cluster/logged.py", "cluster/runs.py", "cluster/registry.py", "dashboards/"),
    "deepspeed": ("cluster/deepspeed/",),
    "boto3": ("cluster/store/bucket.py",),
    "botocore": ("cluster/store/bucket.py",),
    "prefect": (
        "flows/pipeline.py",
        "flows/running.py",
        "flows/steps.py",
        "flows/deployments.py",
        "flows/engine.py",
        "flows/served.py",
        "flows/schedules.py",
        "flows/triggers.py",
        "flows/messenger.py",
        "flows/announcer.py",
        "flows/notify.py",
        "flows/connection.py",
        "flows/registration.py",
        "flows/listing.py",
    ),
    "transformers": ("tasks/models/", "tasks/evaluators/", "tasks/data/", "tasks/harness/", "tasks/pretrain.py"),
    "matplotlib": ("dashboards/",),
    "dash": ("dashboards/",),
    "dash_ag_grid": ("dashboards/",),
    "plotly": ("dashboards/",),
    "flask": ("dashboards/app.py",),
    "werkzeug": ("dashboards/app.py",),
    "optuna": ("flows/search.py",),
    "torch": (
        "tasks/",
        "cluster/deepspeed/",
        "cluster/packing.py",
        "cluster/ray/targets.py",
        "cluster/profile.py",
        "flows/doctor.py",
    ),
}
ONE_LINE = {
    ("flows/launch.py", "prefect.logging.handlers"),  # the log handler is flushed before its server goes
    ("flows/deploy.py", "prefect.client.orchestration"),
}
MACHINERY = {  # what the methods of a shelf stand on, formats, torch and pydantic apart
    "pruners": ("tasks.calibrate", "tasks.methods", "tasks.models.find.structure", "tasks.models.cut"),
    "quantizers": ("tasks.calibrate",),
    "allocators": ("tasks.calibrate", "tasks.methods", "tasks.models.allocation"),
    "mergers": ("tasks.mergers",),
    "transforms": ("tasks.models.build.transform", "tasks.models.build.expanded"),
    "surgeries": ("tasks.models.build", "tasks.models.find.linears", "tasks.models.find.structure", "tasks.methods"),
    "objectives": ("tasks.train", "tasks.methods"),
    "regimes": ("tasks.train", "tasks.methods", "tasks.models.allocation", "tasks.models.build"),
    "evaluators": ("tasks.evaluators", "tasks.data", "tasks.harness", "tasks.models", "numpy"),
}
CONTRACTS = (  # what a contributor implements: typed to the end, so that an editor completes it and the checker checks it
    "tasks/calibrate/method.py",
    "tasks/calibrate/quantizer.py",
    "tasks/calibrate/folding.py",
    "tasks/calibrate/refiner.py",
    "tasks/calibrate/resizer.py",
    "tasks/calibrate/structured.py",
    "tasks/calibrate/observe.py",
    "tasks/models/allocation.py",
    "tasks/models/build/surgery.py",
    "tasks/models/build/transform.py",
    "tasks/train/engine.py",
    "tasks/train/objective.py",
    "tasks/train/regime.py",
    "tasks/evaluators/__init__.py",
    "tasks/mergers/__init__.py",
)
LONGEST_FILE, LONGEST_FUNCTION = 250, 40
# Exceptions may only shrink; one that is no longer needed is to be deleted.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}


@cache
def sources(*tops: str) -> tuple[str, ...]:
    return tuple(path.relative_to(ROOT).as_posix() for top in tops or OURS for path in sorted((ROOT / top).rglob("*.py")))


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def nodes(root: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs: what stands under ``if TYPE_CHECKING`` is left out."""
    for child in ast.iter_child_nodes(root):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from nodes(child)


@cache
def imports(path: str, types: bool = False) -> frozenset[str]:
    """The modules a file imports, lazily or not; with ``types`` also those that only type checkers import."""
    found = set()
    for node in ast.walk(tree(path)) if types else nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            package = node.module in _packages()
            found |= {f"{node.module}.{alias.name}" if package else node.module for alias in node.names}
    return frozenset(found)


@cache
def _packages() -> tuple[str, ...]:
    """Our packages by dotted name: ``from tasks.formats import mask`` imports tasks.formats.mask."""
    return tuple(path.removesuffix("/__init__.py").replace("/", ".") for path in sources() if path.endswith("/__init__.py"))


def within(module: str, *roots: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def ours(path: str) -> list[str]:
    return [module for module in imports(path) if within(module, *OURS)]


def offences(paths: tuple[str, ...], *allowed: str) -> list[str]:
    """Imports of ours from outside the allowed packages."""
    return [f"{path} imports {module}" for path in paths for module in ours(path) if not within(module, *allowed)]


def test_flows_import_anything_of_ours_and_nothing_of_ours_imports_flows():
    assert not [path for path in sources("tasks", "cluster", "dashboards") for module in ours(path) if within(module, "flows")]


def test_tasks_know_neither_flows_nor_dashboards_and_two_files_know_the_cluster():
    given = ("tasks/job.py", "tasks/machine.py")  # a stage's inputs and its engine; what it tells are the cluster's events
    others = tuple(path for path in sources("tasks") if path not in given)
    assert offences(others, "tasks", "cluster.store.durable", "cluster.ray.events") == []
    assert offences(given, "tasks", "cluster") == []


def test_the_cluster_knows_nothing_of_ours():
    """One exception: the DeepSpeed engine fills the training loop's protocol, and its shards are that protocol's."""
    engine = sources("cluster/deepspeed")
    assert offences(tuple(path for path in sources("cluster") if path not in engine), "cluster") == []
    assert offences(engine, "cluster", "tasks.train.engine") == []


def test_no_module_imports_itself_by_way_of_others():
    """Not lazily and not for types either: of two modules that need each other, one is in the wrong place."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources()}
    graph = {module: imports(path, types=True) & modules.keys() - {module} for module, path in modules.items()}
    assert circles(graph) == {}


@pytest.mark.parametrize("top", ["cluster", "tasks/calibrate", "tasks/models", "tasks/train"])
def test_rooms_of_a_folder_do_not_need_each_other(top):
    rooms = {path.parent.as_posix() for path in map(Path, sources(top))} - {top}
    graph = {
        room: {
            other
            for path in sources(room)
            for other in rooms - {room}
            if any(within(module, other.replace("/", ".")) for module in imports(path, types=True))
        }
        for room in rooms
    }
    assert circles(graph) == {}


def circles(graph: Mapping[str, Set[str]]) -> dict[str, list[str]]:
    """The modules on a circle of imports, or between two, and what they import of each other."""
    left = {module: imported & graph.keys() for module, imported in graph.items()}
    while loose := {module for module in left if not left[module]} | left.keys() - set().union(*left.values()):
        left = {module: imported - loose for module, imported in left.items() if module not in loose}
    return {module: sorted(imported) for module, imported in left.items()}


def test_a_circle_is_found_and_what_leads_to_it_is_none_of_it():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"b": ["c"], "c": ["b"]}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {}


def test_dashboards_know_the_tracking_the_vocabulary_and_nothing_else_of_ours():
    assert offences(sources("dashboards"), "dashboards", "cluster.tracking", "tasks.metrics") == []


def test_machinery_knows_neither_stages_nor_methods():
    machinery = tuple(
        path for folder in ("formats", "calibrate", "train", "models", "data") for path in sources(f"tasks/{folder}")
    )
    upper = [f"tasks.{name}" for name in (*STAGES, *SHELVES, "job")]
    assert not [f"{path} imports {module}" for path in machinery for module in ours(path) if within(module, *upper)]


def test_formats_need_torch_and_numpy_only():
    allowed = (*sys.stdlib_module_names, "torch", "numpy", "safetensors", "tasks.formats")
    found = {module: path for path in sources("tasks/formats") for module in imports(path)}
    assert not {module: path for module, path in found.items() if not within(module, *allowed)}


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_has_its_place(library):
    found = [
        f"{path} imports {module}"
        for path in sources()
        for module in imports(path)
        if within(module, library) and not path.startswith(LIBRARIES[library]) and (path, module) not in ONE_LINE
    ]
    assert found == []


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_shelf_has_the_root_class_of_its_methods(shelf):
    root = getattr(import_module(f"tasks.{shelf}"), {"surgeries": "Surgery"}.get(shelf, shelf.removesuffix("s").title()))
    assert all(issubclass(load(shelf, name), root) for name in names(shelf))


@pytest.mark.parametrize(("shelf", "name"), [(shelf, name) for shelf in SHELVES for name in names(shelf)])
def test_a_method_is_one_class_with_a_paper_a_test_and_nothing_but_its_machinery(shelf, name):
    path = f"tasks/{shelf}/{name}.py"
    allowed = (*sys.stdlib_module_names, "torch", "pydantic", "tasks.formats", *MACHINERY[shelf])
    assert not [module for module in imports(path) if not within(module, *allowed)]
    papers = [
        statement.value.value
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == "paper"
    ]
    assert len(papers) == 1 and papers[0]
    tests = [file for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    named = re.compile(rf"""["']{name}["']""")
    assert any(file.stem == f"test_{name}" or named.search(file.read_text()) for file in tests), f"no test mentions {name}"


def test_what_a_contributor_implements_says_nothing_is_any():
    assert not [path for path in CONTRACTS for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and node.id == "Any"]


@pytest.mark.parametrize("shelf", [shelf for shelf in SHELVES if shelf != "evaluators"])
def test_a_method_opens_no_file_logs_nothing_and_asks_for_no_rank(shelf):
    for path in (f"tasks/{shelf}/{name}.py" for name in names(shelf)):
        assert not [module for module in imports(path) if within(module, "logging", "os", "io", "pathlib", "torch.distributed")]
        called = {node.func.id for node in nodes(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not called & {"open", "print"}, path


def test_the_top_level_is_exactly_the_plans():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = subprocess.run([*command[:4], "-z"], capture_output=True, text=True, check=True)
    found = {line.partition("/")[0] for line in listed.stdout.splitlines() if (ROOT / line.partition("/")[0]).exists()}
    recipes = {name for name in found if name.endswith(".yaml")} - set(tracked.stdout.split("\0"))  # a user's own
    assert {name for name in found if not name.startswith(".")} - recipes == TOP


def test_a_folders_readme_is_short():
    for path in ROOT.glob("*/README.md"):
        assert len(path.read_text().splitlines()) <= 20, path


def test_no_file_is_named_after_nothing():
    assert not [path for path in sources(*OURS, "tests") if Path(path).stem in FORBIDDEN_NAMES]


def test_stages_are_verbs_and_every_file_has_a_thesis():
    singles = {Path(path).stem for path in sources("tasks") if path.count("/") == 1}
    machinery = "stage context methods job machine metrics history provenance refusal workers"
    assert singles == {*STAGES, "__init__", *machinery.split()}
    assert not [path for path in sources() if (ROOT / path).read_text().strip() and not ast.get_docstring(tree(path))]


def test_files_are_short():
    sizes = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert not {path: size for path, size in sizes.items() if size > LONG_FILES.get(path, LONGEST_FILE)}
    assert not [path for path in LONG_FILES if sizes.get(path, 0) <= LONGEST_FILE], "no longer needed: delete it"


def test_functions_are_short():
    sizes = {
        f"{path}:{node.name}": node.end_lineno - node.body[0].lineno + 1
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: size for name, size in sizes.items() if size > LONG_FUNCTIONS.get(name, LONGEST_FUNCTION)}
    assert not [name for name in LONG_FUNCTIONS if sizes.get(name, 0) <= LONGEST_FUNCTION], "no longer needed: delete it"


def test_every_row_of_the_table_is_a_known_metric():
    from flows.display import ROWS
    from tasks.metrics import METRICS

    assert {name for name, _, _ in ROWS} <= METRICS.keys()


def fields_bearers() -> list[type]:
    """Every stage and every method, and all classes that they descend from."""
    kinds = [stage_class(name) for name in STAGES] + [load(shelf, name) for shelf in SHELVES for name in names(shelf)]
    return sorted(
        {each for kind in kinds for each in kind.__mro__ if "model_fields" in vars(each) or hasattr(each, "model_fields")},
        key=str,
    )


def test_a_field_with_another_default_keeps_the_bounds_of_the_field_it_stands_for():
    """Writing a default anew drops what the parent's field says of the values that are allowed."""
    lost = []
    for kind in fields_bearers():
        for parent in (each for each in kind.__mro__[1:] if hasattr(each, "model_fields")):
            for name, field in parent.model_fields.items():
                missing = [bound for bound in field.metadata if bound not in kind.model_fields[name].metadata]
                narrower = get_origin(kind.model_fields[name].annotation) is Literal
                if missing and not narrower and not any(type(bound) is of for bound in missing):
                    lost.append(f"{kind.__name__}.{name} lacks {missing} of {parent.__name__}")
    assert not lost


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_bench_imports_is_there(path):
    """Nothing runs the benches but people, and they import in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(OURS):
            module = import_module(node.module)
            absent = [one.name for one in node.names if not hasattr(module, one.name)]
            assert not [name for name in absent if find_spec(f"{node.module}.{name}") is None], node.module
