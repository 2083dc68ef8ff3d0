"""What transformers knows of model types and their configs, read from its source: importing it brings torch, and seconds.

Enough to refuse a wrong name or width at once. Whatever is accepted here is asked of transformers itself before anything
starts; a test holds the two against each other for every model type.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SHARED = ("configuration_utils.py", "modeling_rope_utils.py", "integrations/heterogeneity/configuration_utils.py")


@cache
def causal_models() -> dict[str, str]:
    """The classes of causal language models by model type."""
    return _mapping("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@cache
def config_names(model_type: str) -> frozenset[str] | None:
    """Whatever may stand in a config of this type: fields, aliases, and what it makes of them; None where the source does
    not tell."""
    if not _lineage(model_type):
        return None
    names = {name for file in SHARED for owner in _classes(_root() / file).values() for name in _names(owner)}
    return frozenset(names.union(*map(_names, _lineage(model_type))))


@cache
def config_defaults(model_type: str) -> dict[str, Any]:
    """The fields of a config of this type that have a plain default, and the default."""
    found: dict[str, Any] = {}
    for owner in _lineage(model_type):
        for statement in owner.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant):
                found.setdefault(statement.target.id, statement.value.value)
    return found


@cache
def aliases(model_type: str) -> dict[str, str]:
    """Names under which fields of a config of this type may be given as well: ``hidden_size`` for GPT-2's ``n_embd``."""
    for owner in _lineage(model_type):
        for statement in owner.body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            if isinstance(target, ast.Name) and target.id == "attribute_map":
                return ast.literal_eval(statement.value)
    return {}


def _lineage(model_type: str) -> list[ast.ClassDef]:
    """The class of a type's config and those it inherits from in the same file, itself first."""
    name = _mapping("models/auto/auto_mappings.py", "CONFIG_MAPPING_NAMES").get(model_type)
    special = _mapping("models/auto/auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    module = special.get(model_type, model_type.replace("-", "_"))
    folder = _root() / "models" / module
    classes = {name: owner for file in folder.glob("configuration_*.py") for name, owner in _classes(file).items()}
    found = []
    while name in classes:
        found.append(classes[name])
        name = next((base.id for base in classes[name].bases if isinstance(base, ast.Name)), "")
    return found


def _names(owner: ast.ClassDef) -> set[str]:
    """Everything that an instance of a class has by a name of its own."""
    found = {node.name for node in owner.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(owner):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # setattr, pop and attribute_map
            found.add(node.value)
    return found


@cache
def _mapping(file: str, name: str) -> dict[str, str]:
    for statement in _tree(_root() / file).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = statement.value
            return dict(ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value))
    raise AssertionError(f"transformers/{file} has no {name}")


@cache
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(file).body if isinstance(node, ast.ClassDef)}


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _root() -> Path:
    return Path(find_spec("transformers").origin).parent
