"""Damage to files: bytes of any format, keys and values of JSON and YAML, columns and rows of parquet.

Every function is seeded: the same mutants come at every run.
"""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa


def byte_mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` times what was done to `data`, and the result, which always differs from `data`."""
    rng = np.random.default_rng(seed)
    kinds = ("cut", "flip", "flip", "set", "insert", "delete", "double", "zeros", "swap", "tail")
    made = 0
    while made < count:
        kind = kinds[made % len(kinds)]
        at, size = int(rng.integers(len(data))), int(2 ** rng.uniform(0, 8))
        mutant = _damaged(kind, data, at, size, rng)
        if mutant != data:
            made += 1
            yield f"{kind} at byte {at} of {len(data)}, size {size}", mutant


def _damaged(kind: str, data: bytes, at: int, size: int, rng: np.random.Generator) -> bytes:
    head, block, rest = data[:at], data[at : at + size], data[at + size :]
    if kind == "cut":
        return head
    if kind == "flip":
        return head + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    if kind == "set":
        return head + rng.bytes(1) + data[at + 1 :]
    if kind == "insert":
        return head + rng.bytes(size) + data[at:]
    if kind == "delete":
        return head + rest
    if kind == "double":
        return head + block + data[at:]
    if kind == "zeros":
        return head + bytes(len(block)) + rest
    if kind == "swap":
        gap = int(rng.integers(1, len(data)))
        return head + rest[:gap] + block + rest[gap:]
    return data + rng.bytes(size)


class Raw(str):
    """Text that stands in the file as it is."""


class Pairs(list[Any]):
    """A mapping whose keys may come twice: a list of [key, value]."""


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, -0.0, 1.5, 1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, Raw("9" * 5000), Raw("1e999"), Raw("[" * 200 + "]" * 200)),
    *(
        "",
        " ",
        "x",
        "0",
        "1",
        "0.5",
        "nan",
        "true",
        "null",
        "\0",
        "\ud800",
        "\u2028",
        "e\u0301",
        "\U0001d518",
        "a" * 5000,
    ),
    *("../x", "/", "${item.seed}", [], Pairs(), [[]], [None], [0, 0], ["x", "x"], Pairs([["", None]])),
    *(Raw("[" * 1100 + "]" * 1100), Raw('{"a":' * 1100 + "1" + "}" * 1100)),
)
DEEPEST = 2  # the last values, for JSON alone
# what YAML has beyond JSON; its reader needs time with the square of the depth, and reaches its end earlier
HOSTILE_YAML = tuple(
    map(
        Raw,
        (
            "[" * 500 + "]" * 500,
            '!!binary "aGk="',
            "2020-01-01",
            "2020-01-01T00:00:00Z",
            "!!set {a, b}",
            "&a [*a]",
            "&a {b: *a}",
            "*nowhere",
            '!!int "x"',
            '!!float "x"',
            "!!omap [a: 1]",
            "!!python/name:os.system x",
            "!unknown {a: 1}",
            "{? [a, b] : c}",
            "{? {a: b} : c}",
            "{<<: 1}",
            "{<<: {a: 1}}",
            "{1: 2, null: 3}",
            "0x1F",
            "0o17",
            "1_000",
            "~",
            "yes",
            "\t",
            "@",
            "&a [" + ", ".join(["&b [x, x, x, x, x, x, x, x]", *["*b"] * 7]) + "]",
            "[&a [x,x,x,x,x,x,x,x]"
            + "".join(f", &{n} [{','.join(['*' + m] * 8)}]" for m, n in zip("abcd", "bcde", strict=True))
            + "]",
        ),
    )
)
KEYS = ("", "x", "id", "a.b", "\ud800", "\u2028", "__class__", "a" * 3000)

_NUMBERS = st.integers(0, 2**16)  # of a place or a value, modulo how many there are
_COUNTS = st.sampled_from((1, 1, 1, 2, 3))
_ACTIONS = st.sampled_from(("value", "value", "value", "drop", "double", "wrap", "swap", "rename", "near"))


@st.composite
def trees(draw: st.DrawFn, tree: Any, yaml: bool = False) -> str:
    """Draw the text of a JSON (or YAML) file that holds `tree` after one to three changes."""
    root = [_pairs(tree)]
    values = (*HOSTILE[:-DEEPEST], *HOSTILE_YAML) if yaml else HOSTILE
    for _ in range(draw(_COUNTS)):
        places = list(_places(root))
        if not places:
            break
        container, index = places[draw(_NUMBERS) % len(places)]
        _change(draw, container, index, values)
    if not root:
        return ""
    return _text(root[0], yaml, draw(st.booleans()))


def _change(draw: st.DrawFn, container: Any, index: int, values: tuple[Any, ...]) -> None:
    action = draw(_ACTIONS)
    entry = container[index]
    in_pairs = isinstance(container, Pairs)
    value = entry[1] if in_pairs else entry
    other = copy.deepcopy(values[draw(_NUMBERS) % len(values)])
    if action == "drop":
        del container[index]
    elif action == "double":
        container.insert(index, copy.deepcopy(entry))
    elif action == "rename" and in_pairs:
        container[index] = [KEYS[draw(_NUMBERS) % len(KEYS)], value]
    elif action == "swap":
        there = draw(_NUMBERS) % len(container)
        if in_pairs:
            container[index], container[there] = [entry[0], container[there][1]], [container[there][0], value]
        else:
            container[index], container[there] = container[there], container[index]
    else:
        if action == "wrap":
            other = [value] if draw(st.booleans()) else Pairs([["x", value]])
        elif action == "near" and isinstance(value, int | float) and abs(value) < 1e9:
            near = (-value, value + 1, value - 1, value * 10, value / 3, str(value))
            other = near[draw(_NUMBERS) % len(near)]
        container[index] = [entry[0], other] if in_pairs else other


def _pairs(tree: Any) -> Any:
    if isinstance(tree, dict):
        return Pairs([key, _pairs(value)] for key, value in tree.items())
    return [_pairs(value) for value in tree] if isinstance(tree, list) else tree


def _places(tree: Any) -> Iterator[tuple[Any, int]]:
    if not isinstance(tree, list):
        return
    for index, entry in enumerate(tree):
        yield tree, index
        yield from _places(entry[1] if isinstance(tree, Pairs) else entry)


def _text(tree: Any, yaml: bool, ascii_only: bool) -> str:
    if isinstance(tree, Raw):
        return tree
    if isinstance(tree, Pairs):
        return (
            "{"
            + ", ".join(f"{_quoted(key, ascii_only)}: {_text(value, yaml, ascii_only)}" for key, value in tree)
            + "}"
        )
    if isinstance(tree, list):
        return "[" + ", ".join(_text(value, yaml, ascii_only) for value in tree) + "]"
    if isinstance(tree, str):
        return _quoted(tree, ascii_only)
    if yaml and isinstance(tree, float) and not math.isfinite(tree):
        return ".nan" if math.isnan(tree) else f"{'-' if tree < 0 else ''}.inf"
    return json.dumps(tree)


def _quoted(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only or any(0xD800 <= ord(letter) < 0xE000 for letter in text))


def table_mutants(table: pa.Table, count: int, seed: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield `count` times what was done to `table`, and the result: another valid parquet file."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        actions: list[str] = []
        mutant = table
        for _ in range(int(rng.choice([1, 1, 1, 2]))):
            if mutant.num_columns:
                what, mutant = _changed_table(mutant, rng)
                actions.append(what)
        if actions:
            made += 1
            yield ", ".join(actions), mutant


def _changed_table(table: pa.Table, rng: np.random.Generator) -> tuple[str, pa.Table]:
    action = str(rng.choice(["column", "rows", "cast", "value", "value", "value", "value", "metadata"]))
    column = int(rng.integers(table.num_columns))
    name = table.column_names[column]
    if action == "column":
        kind = str(rng.choice(["drop", "rename", "double", "extra", "reorder"]))
        return f"{kind} column {name}", _changed_columns(kind, table, column, rng)
    if action == "rows":
        kind = str(rng.choice(["drop", "double", "shuffle", "none", "half"]))
        rows = np.arange(table.num_rows)
        if len(rows):
            at = int(rng.integers(len(rows)))
            rows = {
                "drop": np.delete(rows, at),
                "double": np.insert(rows, at, at),
                "shuffle": rng.permutation(rows),
                "none": rows[:0],
                "half": rows[: len(rows) // 2],
            }[kind]
        return f"{kind} rows", table.take(pa.array(rows))
    if action == "metadata":
        damaged = {b"ARROW:schema": rng.bytes(9), b"huggingface": b"{", b"pandas": b"[1]"}
        return "metadata", table.replace_schema_metadata(damaged)
    changed = _retyped(table[column], rng) if action == "cast" else _revalued(table[column], rng)
    return f"{action} of {name}: {changed.type}", table.set_column(column, name, changed)


def _changed_columns(kind: str, table: pa.Table, column: int, rng: np.random.Generator) -> pa.Table:
    name, values = table.column_names[column], table[column]
    if kind == "drop":
        return table.remove_column(column)
    if kind == "rename":
        return table.rename_columns([f"{old}_" if old == name else old for old in table.column_names])
    if kind == "double":
        return table.append_column(name, values)
    if kind == "extra":
        return table.append_column("extra", values)
    return table.select([int(index) for index in rng.permutation(table.num_columns)])


def _retyped(values: pa.ChunkedArray, rng: np.random.Generator) -> pa.ChunkedArray:
    """Return the column in another type; where Arrow has no such cast, other values of that type."""
    kinds = [
        *(pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.bool_()),
        *(pa.null(), pa.date32(), pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.float64())),
        *(pa.large_list(pa.float32()), pa.list_(pa.list_(pa.string())), pa.struct([("bytes", pa.binary())])),
        *(pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32(), 2), pa.float16(), pa.decimal128(9, 2)),
    ]
    kind = kinds[int(rng.integers(len(kinds)))]
    try:
        return values.cast(kind, safe=False)
    except (pa.ArrowException, NotImplementedError):
        samples = ([0] * len(values), ["x"] * len(values), [["x"]] * len(values), [[1]] * len(values))
        for sample in (*samples, [{"bytes": b"x"}] * len(values), [None] * len(values)):
            try:
                return pa.chunked_array([pa.array(sample, kind)])
            except (pa.ArrowException, NotImplementedError, TypeError, ValueError):
                continue
    raise AssertionError(f"no sample of {kind}")


def _revalued(values: pa.ChunkedArray, rng: np.random.Generator) -> pa.ChunkedArray:
    """Return the column with one value changed inside its type; texts also to bytes that are no UTF-8."""
    kind = values.type
    try:
        rows = values.to_pylist()
    except UnicodeDecodeError:  # from the change before
        return values
    if not rows:
        return values
    at = int(rng.integers(len(rows)))
    if pa.types.is_string(kind) and rng.random() < 0.2:
        raw = [b"\xff\xfe" if row == at else str(text).encode() for row, text in enumerate(rows)]
        return pa.chunked_array([pa.array(raw, pa.binary()).view(pa.string())])
    rows[at] = _other(rows[at], kind, rng)
    if rng.random() < 0.1:
        rows[at] = rows[(at + 1) % len(rows)]
    try:
        return pa.chunked_array([pa.array(rows, kind)])
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.chunked_array([pa.array([None if row == at else text for row, text in enumerate(rows)], kind)])


def _other(value: Any, kind: pa.DataType, rng: np.random.Generator) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_list(kind):
        items = list(value or [])
        action = str(rng.choice(["empty", "short", "long", "item", "item", "item", "repeat"]))
        if action == "empty" or not items:
            return []
        if action == "short":
            return items[:-1]
        if action == "long":
            return [*items, items[0]]
        if action == "repeat":
            return [items[0]] * len(items)
        at = int(rng.integers(len(items)))
        items[at] = _other(items[at], kind.value_type, rng)
        return items
    if pa.types.is_struct(kind):
        fields = dict(value or {})
        for field in kind:
            if rng.random() < 0.7:
                fields[field.name] = _other(fields.get(field.name), field.type, rng)
        return fields
    if pa.types.is_floating(kind):
        return float(rng.choice([math.nan, math.inf, -math.inf, 1e30, -1.0, 0.0, 0.5, 2.0]))
    if pa.types.is_integer(kind):
        return int(rng.choice([-1, 0, 1, 2, 7, 2**40]))
    if pa.types.is_binary(kind):
        return [b"", b"x", bytes(value or b"")[:-9], bytes(value or b"")[4:], rng.bytes(64)][int(rng.integers(5))]
    return ["", " ", "x", "\0", "\u2028", "e\u0301", "a" * 300, "d0", "q0"][int(rng.integers(9))]
