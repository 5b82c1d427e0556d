"""The format as a document: every JSON of a store against its schema, and versions to come."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import cv2
import jsonschema_rs
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ingest_fixtures import Watcher, make_job, write_droid
from store_documents import Document, documents
from store_fixtures import random_episode, sealed, write_episode

import attnstore
from attnstore.cli import cli
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.query.cnn import cnn_results
from attnstore.store.catalog import refresh
from attnstore.store.commits import Attempt, Commit, StorePaths, all_commits, hash_file, log_of
from attnstore.store.commits.attempt import remove_part
from attnstore.store.commits.entry import Kind
from attnstore.store.commits.entry import sealed as sealed_entry
from attnstore.store.commits.files import to_json
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import load_run
from attnstore.store.commits.verify import verify
from attnstore.store.errors import AttnstoreError, IntegrityError, UnsupportedFormatError
from attnstore.store.format.documents import NAMES, Name, check, schema
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.version import FORMAT_MAJOR, FORMAT_MINOR
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store, open_store


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a document of every kind, all from the real pipeline and the command line."""
    folder = tmp_path_factory.mktemp("format")
    dataset = DroidDataset(write_droid(folder / "toy", lengths=(9, 1, 1)))
    policy: Any = Pi0Policy.from_model(*build_tiny_pi0(layers=2, steps=2, chunk=3))
    names = list(dataset.episode_names())
    root = folder / "store"
    job = make_job(root, policy, dataset, precision="log8")

    class Breaking(Watcher):
        def started(self, name: str) -> None:
            if name == names[2]:  # its attention is NaN, which the health gate sees
                with torch.no_grad():
                    for parameter in policy.model.parameters():
                        parameter.fill_(float("nan"))

    report = ingest_all(job, policy, dataset, names, Breaking())
    assert [o.status for o in report.outcomes] == ["committed", "committed", "quarantined"]
    image = folder / "view.png"
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    network = ("--network", "cnn_networks:make", "--weights", "random", "--layer", "2")
    command("cnn", "activations", root, *network, "--filters", "0", "--size", "8", "--image", image)
    paths = open_store(root)
    (Attempt(paths, "run", "episode", "base").path / "attempt.json").write_text("{}")  # abandoned
    last = max((c for c in all_commits(paths) if c.part == "base"), key=lambda c: c.created)
    remove_part(paths, last.key)
    collect(paths, timedelta())
    Attempt(paths, last.run, last.episode, "base")  # under way
    refresh(paths)
    return root


def command(*arguments: object) -> None:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def found(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    copied = tmp_path_factory.mktemp("pulled") / "copy"
    command("pull", ingested, copied, "--tier", "maps")
    return [*documents(ingested), *documents(copied)]


def test_every_document_of_an_ingest_keeps_its_schema(found: list[Document]) -> None:
    for name, where, value in found:
        check(value, name, where)
    assert {name for name, _, _ in found} == set(NAMES)
    assert {v["kind"] for n, _, v in found if n == "entry"} == {*get_args(Kind)}


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name: Name) -> None:
    """Of the dialect that they name, and without a word that it does not know."""
    text = schema(name)
    assert text["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(text)
    known = {
        "$schema", "$id", "$defs", "$ref", "title", "description", "type", "required", "properties",
        "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "minimum", "maximum",
        "exclusiveMinimum", "minLength", "pattern", "enum", "const", "if", "then", "allOf", "anyOf",
        "contentMediaType",
    }  # fmt: skip

    def words(part: Any) -> Iterator[str]:
        for key, value in part.items() if isinstance(part, dict) else ():
            yield key
            inner = value.values() if key in ("properties", "$defs") else [value]
            for each in inner:
                for one in each if isinstance(each, list) else [each]:
                    yield from words(one)

    assert set(words(text)) <= known


FREE = {
    "run": {"provenance*", "config.options*"},
    "episode": {"attributes*"},
    "entry": {"summary", "summary.*"},
    "zarr": {
        "attributes*",
        "*.attributes*",
        "*chunk_key_encoding.configuration",
        "*codecs.*configuration*",
        "*storage_transformers",
        "consolidated_metadata.kind",
        "consolidated_metadata.must_understand",
        "*.consolidated_metadata",
    },  # what codecs say, and what Zarr has that attnstore does not, is for store/vetting.py
    "cnn": {"settings*"},
}
"""Places where the format says nothing, or another value is as good."""


def test_another_value_anywhere_is_noticed(found: list[Document]) -> None:
    """An object in the place of every value of one document of each kind, and every key taken away."""
    kinds: dict[str, Document] = {}
    for name, where, value in found:
        kinds.setdefault(
            f"{name} {value.get('kind', value.get('node_type', ''))}", (name, where, value)
        )
    assert len(kinds) >= len(NAMES) + 3
    for name, where, value in kinds.values():
        accepted = [
            ".".join(map(str, place))
            for place in places(value)
            if is_valid(name, changed(value, place, lambda: {"?": 0}))
        ]
        left = [p for p in accepted if not any(matches(p, free) for free in FREE.get(name, ()))]
        assert left == [], (name, where)
        needed = schema(name)["required"]
        for key in needed:
            without = {k: v for k, v in value.items() if k != key}
            with pytest.raises(IntegrityError, match=rf'{name}: .*"{key}" is a required property'):
                check(without, name, name)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items)[:3] if isinstance(value, list) else items:
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*above, key))


def changed(value: Any, place: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = make()
    return made


def matches(place: str, free: str) -> bool:
    return re.fullmatch(re.escape(free).replace(r"\*", ".*"), place) is not None


def is_valid(name: Name, value: Any) -> bool:
    try:
        check(value, name, name)
    except IntegrityError:
        return False
    return True


TIME = "2030-01-01T00:00:00Z"
OWNER = {"host": "h", "pid": 1, "created": TIME}
GEOMETRY = json.loads(Geometry.letterbox((36, 64), (56, 56), (14, 14)).to_json())
NOTE = {
    "number": 3, "previous": None, "created": TIME, "format": {"major": 1, "minor": 0}, "sha256": "0" * 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("source", [], 'x.json: [] is not of type "object"'),
        ("source", {"source": {"a": "b" * 200}}, 'source: {"a": "bbb'),
        ("attempt", {**OWNER, "pid": -1}, "x.json: pid: -1 is less than the minimum of 0"),
        ("attempt", {**OWNER, "pid": True}, 'pid: true is not of type "integer"'),
        ("attempt", {**OWNER, "pid": float("nan")}, "pid: "),
        ("attempt", {**OWNER, "created": "\ud800"}, "half a character"),
        ("geometry", {**GEOMETRY, "colour": 1}, "('colour' was unexpected)"),
        ("geometry", {**GEOMETRY, "crop": [0, 0, 1]}, "crop: [0, 0, 1] has less than 4 items"),
        ("entry", {**NOTE, "kind": "run", "run": "../x"}, 'run: "../x" does not match'),
        ("zarr", {"zarr_format": 3, "node_type": "x"}, 'node_type: "x" is not one of group, array'),
    ],
)
def test_messages_name_the_place_and_the_rule(name: Name, value: Any, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        check(value, name, "x.json")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


NEXT = {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR + 1}
LATER = {"major": FORMAT_MAJOR + 1, "minor": 0}


@pytest.fixture
def store(tmp_path: Path) -> tuple[StorePaths, Commit]:
    paths = create_store(tmp_path / "s")
    commit = write_episode(paths, "success/one", keyframes=1)
    return paths, commit


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    has_seal = file.parent.name in ("log", "runs")
    file.write_bytes(sealed_entry(value) if has_seal else to_json(value))


def entry_file(paths: StorePaths, kind: str) -> Path:
    return next(
        f for f in sorted(paths.log.glob("*.json")) if json.loads(f.read_text())["kind"] == kind
    )


def rewrite_root(
    paths: StorePaths, commit: Commit, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(commit.directory(paths) / "attention.zarr" / "zarr.json", change)
    sealed(paths, commit)


def nameless(value: dict[str, Any]) -> None:
    for key in ("run", "episode", "part"):
        del value[key]


def relinked(paths: StorePaths) -> None:
    """Write the digests of a log anew, as the author of its entries would have."""
    previous = None
    for file in sorted(paths.log.glob("*.json")):
        value = {**json.loads(file.read_text()), "previous": previous}
        file.write_bytes(sealed_entry(value))
        previous = hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_store_of_a_newer_minor_version_opens(store: tuple[StorePaths, Commit]) -> None:
    """With new keys wherever a minor version may have added some, and an entry of a new kind."""
    paths, commit = store

    def grow(value: dict[str, Any]) -> None:
        value.update(format=NEXT, colour={"of": ["the", "future"]})

    def grow_root(value: dict[str, Any]) -> None:
        attributes = value["attributes"]
        attributes.update(attnstore_format=NEXT, colour=1)
        episode = attributes["attnstore_episode"]
        episode["colour"] = episode["phases"]["prefix"]["colour"] = {}
        for span in episode["phases"]["prefix"]["key"]:
            span["colour"] = "red"

    rewrite_root(paths, commit, grow_root)
    rewrite(paths.marker, grow)
    rewrite(paths.run_file(commit.run), grow)
    for kind in ("run", "commit"):
        rewrite(entry_file(paths, kind), grow)
    rewrite(entry_file(paths, "commit"), lambda v: v["summary"].update(colour=[]))
    new = {
        "format": NEXT,
        "number": 3,
        "kind": "note",
        "created": "2030-01-01T00:00:00Z",
        "text": "",
    }
    paths.entry(3).write_bytes(sealed_entry({**new, "previous": None}))
    relinked(paths)
    assert [str(p) for p in verify(open_store(paths.root))] == []
    opened = attnstore.open(paths.root)
    (episode,) = opened.episodes.values()
    assert episode.name == "success/one"
    written = random_episode("success/one", keyframes=1)
    part = Part(paths, next(iter(all_commits(paths))))
    np.testing.assert_array_equal(
        part.attention("prefix", (slice(None),)), written.padded("prefix").astype(np.float16)
    )
    assert opened.sql("select count(*) from episodes").fetchall() == [(1,)]
    # and it is written to as before
    write_episode(paths, "success/two", keyframes=1)
    assert json.loads(paths.entry(4).read_text())["format"]["minor"] == FORMAT_MINOR


def test_an_entry_of_an_unknown_kind_of_this_version_is_an_error(
    store: tuple[StorePaths, Commit],
) -> None:
    paths, _ = store
    now = {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR}
    new = {"format": now, "number": 3, "kind": "note", "created": "2030-01-01T00:00:00Z"}
    paths.entry(3).write_bytes(sealed_entry({**new, "previous": None}))
    (bad,) = log_of(paths).update(thorough=True).unreadable.values()
    assert "kind 'note' is not one of commit, removal, run, discard" in bad.reason


def test_a_newer_major_version_is_refused_at_the_marker(store: tuple[StorePaths, Commit]) -> None:
    paths, _ = store
    rewrite(paths.marker, lambda v: v.update(format=LATER))
    for opening in (open_store, create_store):
        with pytest.raises(UnsupportedFormatError, match=r"attnstore\.json has format version 2;"):
            opening(paths.root)


def test_a_newer_major_version_is_refused_at_the_run(store: tuple[StorePaths, Commit]) -> None:
    paths, commit = store
    file = paths.run_file(commit.run)
    rewrite(file, lambda v: v.update(format=LATER, config="something else"))
    with pytest.raises(UnsupportedFormatError, match=rf"{commit.run}\.json has format version 2;"):
        load_run(paths, commit.run)
    assert any("format version 2" in str(p) for p in verify(paths))


def test_a_newer_major_version_is_refused_at_the_entry(store: tuple[StorePaths, Commit]) -> None:
    paths, commit = store
    file = entry_file(paths, "commit")
    rewrite(file, lambda v: v.update(format=LATER))
    with pytest.raises(AttnstoreError, match="format version 2; this attnstore reads up to 1"):
        attnstore.open(paths.root).episode(commit.episode)
    said = [str(p) for p in verify(open_store(paths.root))]
    assert any("format version 2" in line and file.name in line for line in said)
    # one that says not even which part it is of
    rewrite(file, nameless)
    said = [str(p) for p in verify(open_store(paths.root))]
    assert any("format version 2" in line and file.name in line for line in said)


def test_a_newer_major_version_is_refused_at_the_part(store: tuple[StorePaths, Commit]) -> None:
    paths, commit = store
    rewrite_root(paths, commit, lambda v: v["attributes"].update(attnstore_format=LATER))
    with pytest.raises(
        UnsupportedFormatError, match="format version 2; this attnstore reads up to 1"
    ):
        _ = Part(paths, next(iter(all_commits(paths)))).spec


def test_versions_of_a_cnn_part(ingested: Path, tmp_path: Path) -> None:
    def copied(name: str, version: dict[str, int]) -> attnstore.Store:
        root = tmp_path / name
        shutil.copytree(ingested, root)
        (file,) = root.glob("data/*/*/cnn-*/cnn.zarr/zarr.json")
        rewrite(file, lambda v: v["attributes"].update(attnstore_format=version))
        rewrite(file, lambda v: v["attributes"]["attnstore_cnn"].update(colour=1))
        sealed = ["cnn.zarr/zarr.json", file.stat().st_size, hash_file(file)]
        paths = StorePaths(root)
        for entry in paths.log.glob("*.json"):
            rewrite(
                entry,
                lambda v: v.update(
                    files=[sealed if f[0] == sealed[0] else f for f in v.get("files", ())]
                ),
            )
        relinked(paths)
        return attnstore.open(root)

    (result,) = cnn_results(copied("minor", NEXT))
    assert result.spec.filters == (0,)
    with pytest.raises(IntegrityError, match="format version 2; this attnstore reads up to 1"):
        _ = [r.spec for r in cnn_results(copied("major", LATER))]


def test_a_word_of_a_newer_minor_version_is_refused_and_explained(
    store: tuple[StorePaths, Commit],
) -> None:
    paths, commit = store

    def change(value: dict[str, Any]) -> None:
        value["attributes"]["attnstore_format"] = NEXT
        value["attributes"]["attnstore_episode"]["phases"]["prefix"]["key"][0]["kind"] = "sound"

    rewrite_root(paths, commit, change)
    with pytest.raises(IntegrityError) as caught:
        _ = Part(paths, next(iter(all_commits(paths)))).spec
    said = str(caught.value)
    assert 'phases.prefix.key.0.kind: "sound" is not one of image, text' in said
    assert said.endswith(
        "it is of format version 1.1, this attnstore knows 1.0: pip install --upgrade attnstore"
    )
