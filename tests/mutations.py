"""Damage as files suffer it: cut, flipped, emptied, retyped, doubled, removed. Seeded."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 10**12, 2**70, "", "0", "x", "<image>", "é\u2028", [], [0], [[1]],
    {}, {"a": 1}, float("nan"), float("inf"), "../../etc/passwd", "{", "1_0",
)  # fmt: skip


@contextmanager
def mutated(root: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Damage one file below `root`, say which and how, and mend it afterwards."""
    path = rng.choice(sorted(p for p in root.rglob("*") if p.is_file()))
    before = path.read_bytes()
    kinds: list[Callable[[Path, bytes, random.Random], str]] = [damage_bytes]
    special = {
        ".json": damage_json, ".jsonl": damage_lines, ".parquet": damage_table,
        ".h5": damage_trajectory, ".npy": damage_array,
    }.get(path.suffix)  # fmt: skip
    if special is not None:
        kinds += [special, special]
    try:
        how = rng.choice(kinds)(path, before, rng)
        yield path.relative_to(root).as_posix(), how
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(before)


def damage_bytes(path: Path, before: bytes, rng: random.Random) -> str:
    kind = rng.choice(["cut", "flip", "flip", "zeros", "doubled", "gone", "empty", "utf-16", "dir"])
    data = bytearray(before)
    place = rng.randrange(max(1, len(data)))
    if kind == "cut":
        path.write_bytes(before[:place])
    elif kind == "flip" and data:
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
        path.write_bytes(data)
    elif kind == "doubled":
        path.write_bytes(before + before[place:])
    elif kind == "gone":
        path.unlink()
    elif kind == "dir":
        path.unlink()
        path.mkdir()
    elif kind == "utf-16":
        path.write_bytes(before.decode("latin-1").encode("utf-16"))
    else:
        path.write_bytes(b"")
    return f"{kind} at {place}"


def damage_value(value: Any, rng: random.Random) -> Any:
    """Change one place in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:place] + value[place : place + 1] + value[place:]
        if rng.random() < 0.1:
            return value[:place] + value[place + 1 :]
        return [*value[:place], damage_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def damage_json(path: Path, before: bytes, rng: random.Random) -> str:
    text = json.dumps(damage_value(json.loads(before), rng))
    path.write_text(text)
    return text[:300]


def damage_lines(path: Path, before: bytes, rng: random.Random) -> str:
    rows = [json.loads(line) for line in before.splitlines()]
    changed = damage_value(rows, rng)
    changed = changed if isinstance(changed, list) else [changed]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    return path.read_text()[:300]


def damage_table(path: Path, before: bytes, rng: random.Random) -> str:
    table = pq.read_table(pa.BufferReader(before))
    name = rng.choice(table.schema.names)
    place, row = table.schema.names.index(name), rng.randrange(table.num_rows)
    kind = rng.choice(["value", "value", "boxed", "text", "gone", "twice", "rows", "swap", "less"])
    values = table[name].to_pylist()
    if kind == "value":
        values[row] = rng.choice([None, -1, 0, 7, 10**9, float("nan"), values[row - 1]])
    elif kind == "boxed":
        values = [[v] for v in values]
    elif kind == "text":
        values = [str(v) for v in values]
    try:
        if kind in ("value", "boxed", "text"):
            table = table.set_column(place, name, pa.array(values))
        elif kind == "gone":
            table = table.drop_columns([name])
        elif kind == "twice":
            table = table.append_column(name, table[name])
        elif kind == "rows":
            table = pa.concat_tables([table.slice(0, row + 1), table.slice(row)])
        elif kind == "swap":
            order = list(range(table.num_rows))
            order[row], order[row - 1] = order[row - 1], order[row]
            table = table.take(order)
        else:
            table = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
        pq.write_table(table, path)
    except (pa.ArrowException, TypeError, OverflowError):  # no such column can be written
        return damage_bytes(path, before, rng)
    return f"{kind} of {name}, row {row}, {values[row]!r}"[:300]


def damage_trajectory(path: Path, before: bytes, rng: random.Random) -> str:
    kinds = ["less", "text", "nan", "deep", "gone", "whole", "group", "huge", "none", "unsigned"]
    kind = rng.choice(kinds)
    with h5py.File(path, "r+") as file:
        found: list[str] = []
        file.visititems(lambda n, d: found.append(n) if isinstance(d, h5py.Dataset) else None)
        key = rng.choice(sorted(found))
        values = file[key][()]
        del file[key]
        if kind == "less":
            file[key] = values[:-1]
        elif kind == "text":
            file[key] = np.asarray(values).astype(str).astype("S")
        elif kind == "nan":
            other = np.asarray(values, np.float64)
            other.reshape(-1)[rng.randrange(other.size)] = rng.choice([np.nan, np.inf, 1e300])
            file[key] = other
        elif kind == "deep":
            file[key] = values[..., None]
        elif kind == "whole":
            file[key] = np.asarray(values).astype(rng.choice(["i2", "u8", "?", "f2"]))
        elif kind == "unsigned":
            file[key] = np.ascontiguousarray(np.abs(values)[::-1]).astype("u8")
        elif kind == "group":
            file.create_group(key)
        elif kind == "huge":
            file.create_dataset(key, shape=(2**40, *np.shape(values)[1:]), dtype="f8", chunks=True)
        elif kind == "none":
            file[key] = h5py.Empty("f8")
    return f"{kind} {key}"


def damage_array(path: Path, before: bytes, rng: random.Random) -> str:
    values = np.load(path)
    kind = rng.choice(["type", "turned", "more", "cut", "bytes"])
    changes: dict[str, Callable[[], Any]] = {
        "type": lambda: values.astype(rng.choice(["u1", "f4", "i8", "S1"])),
        "turned": lambda: np.asfortranarray(values.T),
        "more": lambda: values[None],
        "cut": lambda: values[:-1],
        "bytes": lambda: (values.view(np.uint8) * 2).view(bool),
    }
    np.save(path, changes[kind]())
    return kind
