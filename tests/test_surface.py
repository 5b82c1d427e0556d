"""The public names: what `attnstore` hands on, a store as a context, its episodes as a mapping."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode, Store
from attnstore.store import errors
from attnstore.store.commits import StorePaths
from attnstore.store.opening import create_store

SMALL: dict[str, Any] = {"keyframes": 2, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_store(tmp_path / "lab.attn")


class TestPublicNames:
    def test_they_are_sorted_and_there(self) -> None:
        assert attnstore.__all__ == sorted(attnstore.__all__)
        assert {name for name in dir(attnstore) if not name.startswith("_")} >= {*attnstore.__all__}
        for name in attnstore.__all__:
            assert getattr(attnstore, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'opne'"):
            attnstore.opne  # noqa: B018  the access is what is tested

    def test_errors_are_all_of_them(self) -> None:
        tree = {
            name: value
            for name, value in vars(errors).items()
            if inspect.isclass(value) and issubclass(value, errors.AttnstoreError)
        }
        assert attnstore.errors.__all__ == sorted(tree)
        assert all(getattr(attnstore.errors, name) is value for name, value in tree.items())
        drawn = str(attnstore.errors.__doc__)
        for name, value in tree.items():
            (line,) = [line for line in drawn.splitlines() if f" {name} " in f" {line} "]
            assert int(line.split(name)[1].split()[0]) == value.exit_code, line


class TestClosing:
    def test_a_closed_store_says_so_and_its_relations_end(self, paths: StorePaths) -> None:
        write_episode(paths, "a", **SMALL)
        with attnstore.open(paths.root) as store:
            first = store.sql("select count(*) from episodes")
            second = store.sql("select name from episodes")
            assert (first.fetchall(), second.fetchall()) == ([(1,)], [("a",)])
            episode = store.episode("a")
        for relation in (first, second):
            with pytest.raises(Exception, match=r"[Cc]onnection .*closed"):
                relation.fetchall()
        for use in (
            lambda: store.sql("select 1"),
            lambda: store.episode("a"),
            lambda: list(store.episodes),
            lambda: store.runs,
            lambda: attnstore.compare(store, "entropy"),
        ):
            with pytest.raises(attnstore.errors.UsageError, match=r"lab\.attn is closed; open it"):
                use()
        assert "closed" in repr(store)
        store.close()
        assert episode.attention("prefix", layer=0).size, "what was opened outlives it"


class TestEpisodes:
    @pytest.fixture
    def store(self, paths: StorePaths) -> Store:
        for name in ("success/d/b", "success/d/a"):
            write_episode(paths, name, **SMALL)
        return attnstore.open(paths.root)

    def test_they_are_a_mapping(self, store: Store) -> None:
        episodes = store.episodes
        assert isinstance(episodes, Mapping)
        assert list(episodes) == ["success/d/a", "success/d/b"]
        assert [e.name for e in episodes.values()] == list(episodes)
        assert all(isinstance(e, Episode) for e in episodes.values())
        assert len(episodes) == 2
        # By the last component and by id, too, as `Store.episode`.
        assert episodes["b"].name == "success/d/b"
        assert episodes[episodes["b"].id].name == "success/d/b"
        assert "b" in episodes
        assert "c" not in episodes
        assert 0 not in episodes  # type: ignore[comparison-overlap]
        # The last component of a name that no episode has is not asked for.
        assert "failure/d/b" not in episodes
        assert "d/b" in episodes
        assert episodes.get("c") is None

    def test_an_unknown_name_is_a_key_error_of_one_line(self, store: Store) -> None:
        with pytest.raises(KeyError) as caught:
            store.episodes["c"]
        assert isinstance(caught.value, attnstore.errors.NotFoundError)
        assert str(caught.value) == "no episode 'c'; there are: success/d/a, success/d/b"
        with pytest.raises(KeyError, match="found by name; got 0"):
            store.episodes[0]  # type: ignore[index]

    def test_names_of_several_runs_have_the_run_in_front(self, paths: StorePaths) -> None:
        first = write_episode(paths, "a", run_seed=0, **SMALL)
        second = write_episode(paths, "a", run_seed=1, **SMALL)
        write_episode(paths, "b", run_seed=1, **SMALL)
        store = attnstore.open(paths.root)
        assert set(store.episodes) == {f"{first.run}/a", f"{second.run}/a", "b"}
        for key, episode in store.episodes.items():
            assert store.episode(key).id == episode.id
            assert store.episodes[key].run == episode.run
        assert {e.run for e in store.episodes.values()} == {first.run, second.run}
        with pytest.raises(attnstore.errors.SelectionError, match="not one episode"):
            store.episodes["a"]

    def test_the_table_is_text_and_escaped_html(self, paths: StorePaths) -> None:
        for i in range(30):
            write_episode(paths, f"success/{i:02d}<b>\x1b[2J", **SMALL)
        episodes = attnstore.open(paths.root).episodes
        lines = repr(episodes).splitlines()
        assert lines[0] == "<attnstore episodes: 30>"
        assert lines[1].split() == ["name", "outcome", "date", "keyframes", "instruction"]
        assert "success/00<b>\\x1b[2J" in lines[3]
        assert "put the cube in the bowl" in lines[3]
        assert "... 6 more" in lines
        assert "success/29" in lines[-1]
        assert "\x1b" not in repr(episodes)
        html = episodes._repr_html_()
        assert "<b>\\x1b" not in html
        assert "success/29&lt;b&gt;\\x1b[2J" in html
        assert html.count("<tr>") == 1 + 24 + 1

    def test_a_store_without_episodes(self, paths: StorePaths) -> None:
        episodes = attnstore.open(paths.root).episodes
        assert (len(episodes), list(episodes), repr(episodes)) == (0, [], "<attnstore episodes: 0>")
        assert "0 episodes" in episodes._repr_html_()

    def test_a_new_look_sees_new_commits(self, store: Store, paths: StorePaths) -> None:
        before = store.episodes
        assert len(before) == 2
        write_episode(paths, "success/d/c", **SMALL)
        assert len(before) == 2
        assert list(store.episodes)[-1] == "success/d/c"
        assert before["c"].name == "success/d/c"
