"""What a store costs as it grows: 10, 100, 1,000 and 10,000 episodes of Pi0.5's shape.

Each question is a process of its own, as a user asks it; its CPU time is that of all its threads, its
memory the peak that is resident. The page cache is warm. The stores: `benchmarks.episodes`. The curve is
printed as a table at the end. Each store is deleted when it was asked: 7 GB at most.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from attnstore.store.commits import StorePaths, all_commits

from .episodes import add, make_store
from .measure import Figure, Setting, Times, size_of
from .service import TOKEN, server_of

COUNTS = (10, 100, 1_000, 10_000)
AIM, MEMORY_AIM = "<= 2", "<= 1000"
MADE = "made by the generator"
WORKED_OVER = 100
"""Episodes of the reduction over a dataset; all of them have their maps."""
OPEN = "import sys, attnstore; attnstore.open(sys.argv[1]).sql('select count(*) from episodes').fetchall()"
STATISTICS = (
    "import sys, attnstore; attnstore.open(sys.argv[1]).sql('select layer, head, avg(entropy_mean) "
    "from episode_stats group by all').fetchall()"
)
LISTED = (
    'import sys, attnstore; attnstore.open(sys.argv[1]).sql("select *, count(*) over () from episodes where '
    "contains(lower(concat_ws(' ', name, instruction, task, run)), 'towel number 7') "
    'order by name, run, episode limit 200").fetchall()'
)
REDUCE = (
    "import sys, attnstore; m = attnstore.open(sys.argv[1]).dataset(phase='prefix', maps='hand_camera')"
    "['map'].mean(('keyframe', 'head')).compute()"
)
REFRESH = (
    "import sys; from attnstore.store.catalog import refresh; "
    "from attnstore.store.opening import open_store; refresh(open_store(sys.argv[1]))"
)
CLI = ("-m", "attnstore")


ROW_CAME = """new MutationObserver(() => {
  const row = document.querySelector('nav.episodes [data-index="0"]');
  if (row) window.firstRow ??= performance.now();
}).observe(document, {childList: true, subtree: true})"""
FILTER = """async wanted => {
  const filter = document.querySelector("#filter");
  const began = performance.now();
  filter.value = wanted;
  filter.dispatchEvent(new Event("input", {bubbles: true}));
  const isThere = () => {
    const rows = document.querySelectorAll("nav.episodes [data-index]");
    return rows.length === 1 && rows[0].textContent.includes(wanted);
  };
  while (!isThere()) await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""
"""Type a name, and wait until its row is the only one; the viewer waits a moment for more letters."""


def run(setting: Setting) -> list[Figure]:
    figures: list[Figure] = []
    counts = (2, 4) if setting.toy else COUNTS
    for count in counts:
        began = time.process_time()
        paths = make_store(
            setting.directory / f"{count}.attn", count,
            keyframes=3 if setting.toy else 23, toy=setting.toy,
        )  # fmt: skip
        made = time.process_time() - began
        figures.append(Figure(f"{MADE}, {count} episodes", made, "CPU s"))
        figures += measure(paths, count, setting.repeats(3))
        figures += in_browser(paths, count)
        shutil.rmtree(paths.root)
    print("\n".join(curve(figures, counts)))
    whole = 3 if setting.toy else WORKED_OVER
    paths = make_store(
        setting.directory / "whole.attn", whole, keyframes=3 if setting.toy else 23, toy=setting.toy,
        whole=whole,
    )  # fmt: skip
    figures += _asked(
        f"dataset(maps=...): mean map per layer: {whole} episodes",
        paths.root,
        ["-c", REDUCE],
        1,
        aim="",
    )
    return figures


def curve(figures: list[Figure], counts: tuple[int, ...]) -> list[str]:
    """Write what grows as a Markdown table: a row a question, a column a number of episodes."""
    rows: dict[str, dict[int, Figure]] = {}
    for figure in figures:
        what, _, rest = figure.name.partition(", ")
        number, _, kind = rest.partition(" episodes")
        if number.isdecimal():
            rows.setdefault(what + kind, {})[int(number)] = figure
    lines = [
        "| | " + " | ".join(f"{n:,}" for n in counts) + " | aim |",
        "|---" * (len(counts) + 2) + "|",
    ]
    for what, found in rows.items():
        cells = [f"{found[n].value:.3g} {found[n].unit}" if n in found else "" for n in counts]
        last = found[max(found)]
        verdict = {None: "", True: f"{last.aim}: met", False: f"{last.aim}: **missed**"}[last.met]
        lines.append(f"| {what} | {' | '.join(cells)} | {verdict} |")
    return lines


def in_browser(paths: StorePaths, count: int) -> list[Figure]:
    """The viewer's list: until its first row is there, and until it is filtered by a name."""
    from playwright.sync_api import sync_playwright

    from .viewer import BROWSERS

    found = next(path for name in BROWSERS if (path := shutil.which(name)))
    first, filtered = [], []
    with (
        server_of(paths.root) as ((host, port), _),
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as browser,
    ):
        for number in range(4):
            with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
                page = context.new_page()
                page.add_init_script(ROW_CAME)
                page.goto(f"http://{host}:{port}/?token={TOKEN}")
                page.locator('nav.episodes [data-index="0"]').wait_for(timeout=120_000)
                first.append(float(page.evaluate("window.firstRow")) / 1e3)
                wanted = f"{number * (count - 1) // 3:06d}"
                filtered.append(float(page.evaluate(FILTER, wanted)) / 1e3)
    where = f"{count} episodes"
    return [
        Figure(f"viewer: first row of the list, {where}", min(first[1:]), "s", aim=AIM),
        Figure(f"viewer: list filtered by a name, {where}", min(filtered[1:]), "s", aim=AIM),
    ]


def measure(paths: StorePaths, count: int, repeats: int) -> list[Figure]:
    """Ask everything of a store; the last question adds an episode."""
    root = paths.root
    made = _asked(f"catalog, first made, {count} episodes", root, ["-c", REFRESH], 1, aim="")
    catalog = size_of(paths.catalog.glob("*.duckdb"))
    figures = [
        *made,
        Figure(f"catalog, {count} episodes", catalog / 1e6, "MB"),
        Figure(f"commit log, {count} episodes", size_of(paths.log.glob("*")) / 1e6, "MB"),
    ]
    where = f"{count} episodes"
    for what, command in {
        "open and first SQL": ["-c", OPEN],
        "SQL over episode_stats": ["-c", STATISTICS],
        "a page of the episode table, filtered": ["-c", LISTED],
        "ls": [*CLI, "ls", str(root)],
        "compare": [*CLI, "compare", "groups", str(root), "--metric", "entropy", "--by", "outcome"],
        "gc --dry-run": [*CLI, "gc", str(root), "--dry-run"],
        "verify --quick": [*CLI, "verify", str(root), "--quick"],
    }.items():
        figures += _asked(f"{what}, {where}", root, command, repeats)
    like = next(c for c in all_commits(paths) if all(f.path.endswith(".parquet") for f in c.files))
    add(paths, like, like.directory(paths), count, np.random.default_rng(count))
    figures += _asked(f"refresh after one more commit, {where}", root, ["-c", REFRESH], 1)
    return figures


_MEASURED = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def _asked(what: str, root: Path, command: list[str], repeats: int, aim: str = AIM) -> list[Figure]:
    times, memory = Times(), 0
    arguments = [*command, str(root)] if command[0] == "-c" else command
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        code, wall, cpu, peak = json.loads(done.stdout)
        if code:
            raise RuntimeError(f"{what}: exit code {code}: {done.stderr[-500:]}")
        times.wall.append(wall)
        times.cpu.append(cpu)
        memory = max(memory, peak * 1024)
    quiet = Figure(
        f"{what}, CPU", min(times.cpu), "CPU s", note="Python's start and imports included"
    )
    return [
        Figure(what, min(times.wall), "s", aim=aim, note=f"least of {repeats}"),
        quiet,
        Figure(f"{what}, memory", memory / 1e6, "MB", aim=MEMORY_AIM),
    ]
