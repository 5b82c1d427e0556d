from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
from store_fixtures import random_episode, write_episode

from attnstore.cli import cli
from attnstore.store.catalog.tables import CATALOG
from attnstore.store.commits.part import Part
from attnstore.store.format.axes import attention_dims, map_dims
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import TABLES

DOCS = Path(__file__).parents[1] / "docs"


def test_generated_pages_are_not_stale() -> None:
    """In a process of its own: click keeps the help options with which a command was first called."""
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_column_is_documented() -> None:
    page = (DOCS / "schema.md").read_text(encoding="utf-8")
    for name, table in {**CATALOG, **TABLES}.items():
        section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        for column in table.columns:
            assert f"| `{column.name}` | " in section, f"{name}.{column.name}"
            assert column.definition.strip() == column.definition != ""
    assert len({**CATALOG, **TABLES}) >= 11


def test_the_arrays_are_those_of_a_written_episode(tmp_path: Path) -> None:
    """The page's list of arrays is written by hand: hold it to what the writer makes."""
    page = (DOCS / "schema.md").read_text(encoding="utf-8")
    paths = create_store(tmp_path / "toy.attn")
    part = Part(paths, write_episode(paths, "a", keyframes=1))
    arrays = part.path / "attention.zarr"
    for phase in random_episode().spec.phases:
        assert f"| `{phase}/attention` | {', '.join(attention_dims(phase))} |" in page
        assert len(part.block(f"{phase}/attention").shape) == len(attention_dims(phase))
        assert f"`maps/{phase}/<query group>/<camera>/mean`, `…/max` | " in page
        assert ", ".join(map_dims(phase)) in page
    for array in (arrays / "policy").iterdir():
        documented = [line for line in page.splitlines() if f"| `policy/{array.name}` |" in line]
        if (array / "c").is_dir() and array.name not in ("frame", "keyframe"):
            dims = len(part.block(f"policy/{array.name}").shape)
            if dims > 1:
                assert documented[0].count(",") == dims - 1


def commands(page: str) -> Iterator[list[str]]:
    """What stands after ``attnstore`` in the lines of a page's blocks, as a shell splits it."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        line = ""
        for piece in block.replace("\\\n", " ").splitlines():
            line = f"{line}\n{piece}" if line else piece
            try:
                words = shlex.split(line.replace(" $P", " --checkpoint C"), comments=True)
            except ValueError:  # a quote is open: the next line belongs to it
                continue
            line = ""
            shell = ["&&", *words, "|"]
            if words[:1] == ["$"]:  # a prompt: what it prints follows
                shell = ["&&", *words[1:], "|"]
            for start, word in enumerate(shell):
                before = [w for w in shell[:start] if "=" not in w][-1:]
                if word == "attnstore" and before == ["&&"]:
                    rest = shell[start + 1 :]
                    ends = [rest.index(end) for end in ("|", "&&", ">", "&") if end in rest]
                    yield rest[: min(ends)]


PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


def test_commands_are_found_in_the_pages() -> None:
    """After a prompt, too: a search that finds nothing would let every page pass."""
    found = [c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 120
    assert ["ls", "s3://bucket/pi05.attn"] in found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_taken(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as it stands, cli.md included: `test_pages` runs those that this machine can run."""
    monkeypatch.setenv("ATTNSTORE", "lab.attn")
    for words in commands(page.read_text(encoding="utf-8")):
        if not words or words[0].startswith("-"):  # completion's script, or the root's own option
            assert {*words[:1]} <= {o for p in cli.params for o in p.opts}
            continue
        if words[:2] == ["ingest", "mine"]:  # a page's own reader has the options that all have
            words[1] = "droid"
        command: click.Command = cli
        context, rest = click.Context(cli, info_name="attnstore"), list(words)
        while isinstance(command, click.Group):
            found = command.get_command(context, rest[0])
            assert found is not None, words
            command = found
            if not isinstance(command, click.Group):
                break
            context = click.Context(command, context, rest[0])
            rest = rest[1:]
        try:
            command.make_context(rest[0], rest[1:], parent=context)
        except click.UsageError as error:
            if "does not exist" not in error.format_message():
                raise
        except click.exceptions.Exit:  # --help
            pass


def test_links_to_other_hosts_are_well_formed() -> None:
    """What can be said of them without asking: `make test-links` asks."""
    repository = re.compile(r"/[\w.-]+/[\w.-]+(/(blob|tree|releases|issues|pull)/[\w./-]+)?/?")
    paper = re.compile(r"/(abs|pdf)/\d{4}\.\d{4,5}(v\d+)?")
    found = 0
    for page in PAGES:
        prose = re.sub(
            r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        targets = re.findall(r"\]\((\w+:[^)\s]*)\)|<(https?:[^>]*)>", prose)
        for target in (a or b for a, b in targets):
            where, parts = f"{page.name}: {target}", urlsplit(target)
            assert parts.scheme == "https", where
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), where
            assert not parts.path.endswith((".", ",", ";")), where
            assert "//" not in parts.path, where
            if parts.netloc == "github.com":
                assert repository.fullmatch(parts.path), where
            if parts.netloc == "arxiv.org":
                assert paper.fullmatch(parts.path), where
            found += 1
        # one that is no link at all: what stands in prose as it is should be one
        bare = re.findall(r"(?<![(<\w])https?://\S+", re.sub(r"\]\([^)]*\)", "", prose))
        assert not bare, f"{page.name}: {bare[:3]} is no link; write [words]({bare[0]})"
    assert found > 5
