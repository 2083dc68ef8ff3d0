"""The one JSON text of a value, which keys and digests are hashed from: what JSON cannot encode exactly is refused."""

import json
import math
import re

SURROGATE = re.compile("[\ud800-\udfff]")
DEEPEST = 64


def canonical_json(value: object) -> str:
    """The one JSON text of a value; TypeError, naming the path, on anything that JSON would bend.

    Types are compared exactly: JSON would flatten an enum or a numpy float. A tuple counts as the list YAML makes it.
    """
    _refuse_inexact(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_inexact(value: object, path: str) -> None:
    where = path.lstrip(".") or "the value itself"
    if path.count(".") + path.count("[") > DEEPEST:
        raise TypeError(f"cannot encode {where}: nested deeper than {DEEPEST} levels")
    if value is None or type(value) in (bool, int):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"cannot encode {where}: {value} is not a JSON number")
    elif type(value) is str:
        # Two lone surrogates and the one character they would spell share a JSON text: two values, one key.
        if SURROGATE.search(value):
            raise TypeError(f"cannot encode {where}: {value!a} is not valid Unicode")
    elif type(value) is list or type(value) is tuple:
        for index, item in enumerate(value):
            _refuse_inexact(item, f"{path}[{index}]")
    elif type(value) is dict:
        for name, item in value.items():
            if type(name) is not str or SURROGATE.search(name):
                raise TypeError(f"cannot encode {where}: its key {name!a} is not a string of valid Unicode")
            _refuse_inexact(item, f"{path}.{name}")
    else:
        raise TypeError(f"cannot encode {where}: a {type(value).__name__} ({value!r:.80}) has no exact JSON form")
