"""Strategies for files that are damaged or of another content."""

import copy
import json
from typing import Any

from hypothesis import strategies as st


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from([2**31, 2**63, -(2**70), 1e400, float("nan"), -0.5, 1e-9]),
        st.text(max_size=8),
        st.sampled_from(["float32", "cpu", "../x", "/", "linear", "CLIPModel", "catseg", "1"]),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=4,
)


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that ends too early, or in which bits are flipped, bytes missing or others in their place. Half of the
    damage is at its beginning, where most formats say what follows."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        place = draw(st.integers(0, min(len(data) - 1, 64)) | st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "overwrite", "remove"]))
        if kind == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        else:
            del data[place : place + draw(st.integers(1, 64))]
    return bytes(data)


def places(value: Any) -> list[tuple]:
    """The keys that lead to every value in JSON, and none for the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *deeper) for key, inner in items for deeper in places(inner))]


@st.composite
def other_values(draw: st.DrawFn, content: Any) -> Any:
    """JSON in which one to three values, at any depth, are missing or others."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(content)[1:]))
        parent = content
        for key in path:
            parent = parent[key]
        if isinstance(parent, dict) and draw(st.integers(0, 4)) == 0:
            del parent[last]
        else:
            parent[last] = draw(json_values)
    return content


def other_json(data: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file with other values."""
    return other_values(json.loads(data)).map(lambda content: json.dumps(content).encode("utf-8", "surrogatepass"))
