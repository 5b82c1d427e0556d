"""A pack: its page in a real browser, from the disk, and the store beside it."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from playwright.sync_api import Browser, Dialog, Page, expect
from service_fixtures import HOSTILE, SCRIPT, write_named
from viewer_fixtures import browser, commit_episode, pixels, planted_episode, settle

import attnstore
from attnstore.cli import cli
from attnstore.query import Episode
from attnstore.query.service import document
from attnstore.render.export.pack import questions
from attnstore.render.export.pack.page import OWN_API
from attnstore.render.export.pack.questions import Chosen, Question, of_episode
from attnstore.render.serving import PAGE as VIEWER
from attnstore.store.errors import AttnstoreError, NotFoundError, UsageError
from attnstore.store.opening import create_store

__all__ = ["browser"]  # a fixture
expect.set_options(timeout=20_000)
CAMERAS = ("hand_camera", "varied_camera_1")
FIRST = "failure/2025-01-01/2025-01-01_10-00-00"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("source") / "my lab.attn")
    for number, outcome in enumerate(("failure", "success")):
        name = f"{outcome}/2025-01-01/2025-01-01_1{number}-00-00"
        commit_episode(paths, planted_episode(name, outcome, number, 3 + number), number)
    write_named(paths, HOSTILE, f"put {SCRIPT} into the bowl", 9)
    return paths.root


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "pack"
    run("export", "pack", source, "--out", out)
    return out


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """At the end: not one request but for the page itself, and nothing that failed."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
    opened = context.new_page()
    wrong: list[str] = []

    def refuse(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    opened.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", refuse)
    asked: list[str] = []
    opened.on("request", lambda r: asked.append(r.url))
    yield opened
    context.close()
    assert not wrong, wrong
    left = [url for url in asked if not url.startswith(("data:", "blob:"))]
    assert {url.partition("#")[0] for url in left} == {left[0].partition("#")[0]}
    assert left[0].startswith("file://")


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def show(page: Page, packed: Path, **view: Any) -> None:
    own, episode = ids(packed / "my lab.attn")[FIRST]
    said = {"run": own, "episode": episode} | view
    shown = "&".join(f"{k}={v}" for k, v in said.items())
    page.goto(f"{(packed / 'index.html').as_uri()}#{shown}")
    settle(page)


def ids(root: Path) -> dict[str, tuple[str, str]]:
    return {c.summary["name"]: (c.run, c.episode) for c in attnstore.open(root).base_commits()}


def episode_of(root: Path, name: str = FIRST) -> Episode:
    own, episode = ids(root)[name]
    return attnstore.open(root).episode(episode, run=own)


def test_a_picture_is_drawn_from_the_disk(page: Page, packed: Path, source: Path) -> None:
    show(page, packed)
    expect(page.locator("h1")).to_have_text(FIRST)
    episode = episode_of(source)
    for camera in CAMERAS:
        head = episode.active_head("prefix", camera, layer=0)
        one = episode.maps("prefix", camera, layer=0, head=head, keyframe=0).values
        seen = np.where(episode.geometry(camera).coverage() > 0, one, -1)
        row, col = np.unravel_index(seen.argmax(), seen.shape)
        pane = page.locator(f'[data-camera="{camera}"]')
        expect(pane).to_contain_text(f"at patch {row}, {col}")
        expect(pane).to_contain_text(f"{one.max():.3g}")
        # bright where the map has its largest value, as the page draws it elsewhere
        shown = pixels(page, camera).astype(int).sum(-1)
        assert shown.std() > 10


def test_everything_that_a_pack_promises_is_in_it(page: Page, packed: Path) -> None:
    show(page, packed)
    errors = page.locator(".error")
    for phase in ("suffix", "prefix"):
        page.get_by_role("radio", name=phase, exact=True).click()
        for over in ("mean", "max"):
            page.get_by_role("radio", name=over, exact=True).click()
            settle(page)
        layer = page.get_by_label("Layer", exact=False).and_(page.locator("input[type=range]"))
        layer.fill("1")
        for head in ("0", "1", "mean", "active"):
            page.get_by_label("Head").and_(page.locator("select")).select_option(head)
            settle(page)
        for keyframe in ("1", "2", "0"):
            page.get_by_role("slider", name="Keyframe").fill(keyframe)
            settle(page)
    metric = page.get_by_label("Metric").and_(page.locator("select"))
    page.get_by_label("Over").and_(page.locator("select")).select_option("keyframe")
    for name in metric.locator("option").all_inner_texts():
        metric.select_option(name)
        page.get_by_label("trace").and_(page.locator("select")).select_option(name)
    expect(page.locator(".tokens button.token").first).to_be_visible()
    page.get_by_role("tab", name="Compare").click()
    settle(page)
    page.get_by_role("tab", name="Look").click()
    settle(page)
    assert errors.all_inner_texts() == []


def test_what_is_not_in_it_says_so(page: Page, packed: Path) -> None:
    show(page, packed, brush="hand_camera:1-1:1-1", weighting="rollout")  # a link of the service
    expect(page.get_by_label("Weighting")).to_have_count(0)
    expect(page.locator(".pane figcaption").first).not_to_contain_text("rollout")
    weights = "weights between tokens are not in this pack: attnstore pull --tier full"
    expect(page.locator(".error")).to_have_text(weights)
    page.locator("button.token").first.click()
    expect(page.locator(".pane .error").first).to_contain_text("need the weights")
    page.get_by_role("tab", name="SQL").click()
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".error")).to_contain_text("SQL is not in this pack: attnstore sql")


def test_the_list_is_filtered_and_ordered_in_the_page(page: Page, packed: Path) -> None:
    show(page, packed)
    rows = page.locator(".episodes tbody tr")
    expect(rows).to_have_count(3)
    page.get_by_role("radio", name="failure").click()
    expect(rows).to_have_count(1)
    page.get_by_role("radio", name="all").click()
    page.get_by_label("Filter episodes").fill("_11-00")
    expect(rows).to_have_count(1)
    page.get_by_label("Filter episodes").fill("it's not there")
    expect(page.get_by_text("No episode matches.")).to_be_visible()
    page.get_by_label("Filter episodes").fill("")
    page.get_by_label("Order").select_option("keyframes")
    expect(rows.last).to_contain_text("2025-01-01_11-00-00")
    page.get_by_label("SQL condition").fill("keyframes > 3")
    expect(page.locator(".episodes .error")).to_contain_text("not in this pack")


def test_a_hostile_name_is_text(page: Page, packed: Path) -> None:
    own, episode = ids(packed / "my lab.attn")[HOSTILE]
    show(page, packed, store="my-lab", run=own, episode=episode)
    expect(page.locator("h1")).to_have_text(HOSTILE)
    assert page.locator("h1 img, h1 script").count() == 0


def test_the_python_call_opens_the_store_beside_the_page(page: Page, packed: Path) -> None:
    show(page, packed)
    page.get_by_role("button", name="Python").click()
    code = page.get_by_label("Python call").inner_text()
    found: dict[str, Any] = {}
    exec(code, found)
    expected = episode_of(packed / "my lab.attn").maps("prefix", CAMERAS[0], layer=0).values
    head = found["episode"].active_head("prefix", CAMERAS[0], layer=0)
    np.testing.assert_array_equal(found["shown"], expected[0, head])


def test_the_store_beside_it_is_the_sources(packed: Path, source: Path) -> None:
    small = packed / "my lab.attn"
    assert ids(small) == ids(source)
    for camera in CAMERAS:
        for phase in ("prefix", "suffix"):
            for reduce in ("max", "mean"):
                theirs = episode_of(source).maps(phase, camera, reduce=reduce).values
                ours = episode_of(small).maps(phase, camera, reduce=reduce).values
                np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(AttnstoreError, match="attnstore pull"):
        episode_of(small).attention("prefix")


def test_names_of_questions_are_the_pages(page: Page, packed: Path) -> None:
    show(page, packed)
    asked = [
        Question("stores", {}),
        Question(
            "episodes", {"text": "a b+c&d=\u00e9*~!'()-._/?#%\"\\\n", "limit": 200, "A": "\u00fc"}
        ),
        Question("maps", {"step": -1, "camera": "top@-1", "a": "", "b": "\ufb00\U0001f600\u2028"}),
    ]
    told = page.evaluate(
        """async (asked) => { const { keyOf } = await import("viewer/questions.js");
             return asked.map(([name, parameters]) => keyOf({ name, parameters })); }""",
        [[q.name, dict(q.parameters)] for q in asked],
    )
    assert told == [q.key for q in asked]


EVERY_VIEW = """async ([{ run, id, store }, limits, steps]) => {
  const { default: declared } = await import("viewer/questions.json");
  Object.assign(declared.limits, limits);
  const asks = await import("viewer/questions.js");
  const { get } = await import("viewer/api.js");
  const { read } = await import("viewer/episode.js");
  const { START } = await import("viewer/state.js");
  const described = asks.episode(store, run, id);
  const e = read(await get(described), store);
  const metrics = (await get(asks.metrics())).map((m) => m.name);
  const questions = [described, asks.objects(e), asks.masks(e), asks.interventions(e), asks.curves(e, null)];
  for (const name of ["actions", "actions_recorded", "state"]) questions.push(asks.policyArray(e, name));
  for (const keyframe of e.frames.keys())
    questions.push(asks.denoising(e, keyframe), asks.interventionMasks(e, keyframe), asks.curves(e, keyframe));
  for (const keyframe of e.frames.keys())
    for (const camera of Object.keys(e.cameras)) questions.push(asks.frame(e, keyframe, camera));
  for (const [phase, { query_groups, cameras, layers, heads, steps: count }] of Object.entries(e.phases))
    for (const query of ["", ...query_groups])
      for (const step of steps && count !== null ? [-1, ...Array(count).keys()] : [-1])
        for (const layer of Array(layers).keys())
          for (const reduce of ["max", "mean"])
            for (const keyframe of e.frames.keys()) {
              const view = { ...START, phase, query, step, layer, reduce, keyframe };
              questions.push(asks.tokens(e, view), asks.sinks(e, view));
              for (const camera of cameras) {
                for (const active of ["image", "lab"]) questions.push(asks.activeHead(e, { ...view, active }, camera));
                for (const head of ["mean", ...Array(heads).keys()]) questions.push(asks.maps(e, view, camera, head));
                for (const metric of metrics)
                  questions.push(
                    asks.matrix(e, view, camera, metric, null), asks.matrix(e, view, camera, metric, keyframe),
                    asks.trace(e, view, camera, metric));
              }
            }
  return [...new Set(questions.filter(Boolean).map(asks.keyOf))];
}"""


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_a_pack_has_what_any_view_of_an_episode_asks(
    page: Page, packed: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer's own questions of every view, and the writer's list of them: one set."""
    limits = {"together": 0, "tokens": 0} if apart else {}
    for name, most in limits.items():
        monkeypatch.setattr(questions, name.upper(), most)
    show(page, packed)
    episode = episode_of(packed / "my lab.attn")
    place = {"run": episode.run, "id": episode.id, "store": "my-lab"}
    asked = set(page.evaluate(EVERY_VIEW, [place, limits, apart]))
    written = {q.key for q in of_episode("my-lab", episode, Chosen(all_steps=apart))}
    assert asked == written
    assert len(asked) > 300


def test_the_page_and_the_viewer_agree() -> None:
    def exported(file: Path) -> set[str]:
        pattern = r"^export (?:async )?(?:class|function|const) (\w+)"
        return set(re.findall(pattern, file.read_text(), re.MULTILINE))

    assert exported(OWN_API) == exported(VIEWER / "api.js")


SAME = {"generated": "tokens", "denoising": "policy_array"}
"""Questions of one endpoint."""


def test_questions_are_the_services() -> None:
    """Every path, and the endpoint by the question's name: the viewer's types of its answers go by it."""
    paths = {
        operation["operationId"]: path
        for path, item in document()["paths"].items()
        for operation in item.values()
    }
    declared = json.loads((VIEWER / "questions.json").read_text())["questions"]
    for name, question in declared.items():
        assert question["path"] == paths[SAME.get(name, name)]
        assert ("pack" in question) != ("absent" in question)


def test_a_forecast_writes_nothing(source: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    said = run("export", "pack", source, "--out", out, "--dry-run", "--json")
    (row,) = [json.loads(line) for line in said.stdout.splitlines()]
    assert not out.exists()
    size = (packed / "index.html").stat().st_size
    assert row["page_bytes_about"] == pytest.approx(size, rel=0.15)
    stored = sum(f.stat().st_size for f in (packed / "my lab.attn" / "data").rglob("*"))
    assert row["store_bytes"] < 1.1 * stored
    some = ("--layers", "0", "--all-steps")
    forecast = run("export", "pack", source, "--out", out, "--dry-run", "--json", *some)
    run("export", "pack", source, "--out", out, *some)
    about = json.loads(forecast.stdout)["page_bytes_about"]
    assert about == pytest.approx((out / "index.html").stat().st_size, rel=0.15)


def test_a_selection(source: Path, tmp_path: Path, page: Page) -> None:
    where = ("--where", "outcome = 'success' and keyframes = 4")
    run("export", "pack", source, "--out", tmp_path, *where, "--layers", "1", "--phase", "suffix")
    assert [*ids(tmp_path / "my lab.attn")] == ["success/2025-01-01/2025-01-01_11-00-00"]
    page.goto((tmp_path / "index.html").as_uri() + "#view=look&phase=suffix&layer=1")
    settle(page)
    page.get_by_label("Layer", exact=False).and_(page.locator("input[type=range]")).fill("0")
    expect(page.locator(".pane .error").first).to_have_text(
        "maps of phase suffix, layer 0, step 1 is not in this pack"
    )


def test_too_large(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnstore.render.export.pack.write import write_pack

    run("pull", source, tmp_path / "small")
    with pytest.raises(UsageError, match=r"the page would be larger than .*raise --max-size"):
        write_pack(tmp_path / "small", tmp_path, Chosen(), 300_000, lambda share, now: None)
    assert not list(tmp_path.glob("*.html*"))
    with pytest.raises(NotFoundError, match="no episodes where"):
        run("export", "pack", source, "--out", tmp_path / "none", "--where", "keyframes > 99")


def test_a_disk_that_is_full_at_the_page(source: Path, tmp_path: Path) -> None:
    """The file is named by its own name, no page is left, and the small store is whole."""
    from attnstore.render.export.pack.write import write_pack

    run("pull", source, tmp_path / "small")
    run("sql", tmp_path / "small", "select 1")  # its catalog is up to date
    before, (soft, hard) = sorted(tmp_path.rglob("*")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_pack(tmp_path / "small", tmp_path, Chosen(), 1 << 30, lambda share, now: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "index.html")
    assert sorted(tmp_path.rglob("*")) == before
    run("verify", tmp_path / "small")
