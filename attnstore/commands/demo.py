"""``attnstore demo``: the main job on a trained policy and its rollouts, which the package carries."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .ingest_choices import RunChoice
from .ingest_run import run_ingest
from .options import StoreCommand, out_directory
from .output import console

if TYPE_CHECKING:
    from attnstore.sample.strength import Strength

FINDINGS = "docs/findings.md"
QUESTIONS = (
    ("What is in the store? Successes and failures of one policy; dim episodes are of 2027.",
     "select outcome, date, count(*) episodes, sum(keyframes) keyframes from episodes "
     "group by all order by all"),
    ("Which camera does each layer prefer? Action tokens the wrist's, but for L02; the words none.",
     "select phase, layer, round(avg(camera_mass_mean) filter (camera = 'hand_camera'), 2) wrist, "
     "round(avg(camera_mass_mean) filter (camera = 'varied_camera_1'), 2) side from episode_stats "
     "where weighting = 'raw' and stands_for_phase(run, phase, step) group by all order by all"),
    ("Which layers look at the cube that is named, and not at the other? (all words, all heads)",
     "select layer, round(avg(lift) filter (contains(instruction, object)), 1) named, "
     "round(avg(lift) filter (not contains(instruction, object)), 1) other "
     "from object_stats join episodes using (run, episode) "
     "where weighting = 'raw' and phase = 'prefix' and head_kind = 'mean' and object like '% cube' "
     "group by all order by all"),
)  # fmt: skip
OUTCOMES = f"""
Over 180 episodes, 124 successes and 56 failures, nothing tells them apart either that new episodes
confirm: in their first two keyframes both look at the object that is named ({FINDINGS})."""
SUCCESS = "success/2026-01-05/2026-01-05_09-00-00"
FAILURE = "failure/2027-01-04/2027-01-04_09-12-00"
CAMERAS = {"hand_camera": "wrist", "varied_camera_1": "side"}


@click.command(cls=StoreCommand)
@out_directory("Directory for the store, the report and the pictures.", default=Path("demo-output"))
def demo(out: Path) -> None:
    """Ingest rollouts of a small trained Pi0, ask where it looks, draw images and a video.

    Robot and table are simulated, and the policy, of the real architecture and 1.8 million
    parameters, was trained with auxiliary losses that shape its maps: docs/findings.md.

    Examples
    --------
    attnstore demo --out demo-output
    """
    from attnstore.query import open as open_for_reading
    from attnstore.sample import episodes_path
    from attnstore.sample.strength import measure

    say = console()
    # beside the trained policy's store, not in it: what a newcomer looks at should mean something
    store, untrained = out / "demo.attn", out / "untrained.attn"
    _ingest(out, store, untrained)

    say.print("\n[bold]3. Objects[/bold]: how much of the attention lies on what the masks show")
    _attnstore(
        "objects", "add", store, "--masks", episodes_path(), "--source", "detector",
        "--out", out / "objects", "--no-pictures", quiet=True,
    )  # fmt: skip

    say.print("\n[bold]4. Ask[/bold]")
    for question, query in QUESTIONS:
        click.echo(f"\n-- {question}")
        _attnstore("sql", store, query)
    _say_strength(measure(open_for_reading(store), open_for_reading(untrained), episodes_path()))

    say.print("\n[bold]5. Success against failure[/bold]: first two keyframes, within one light")
    _attnstore(
        "compare", "groups", store, "--metric", "entropy", "--by", "outcome", "--window", "2",
        "--strata", "date", "--rows", "3",
    )  # fmt: skip
    click.echo(OUTCOMES)

    say.print("\n[bold]6. Draw[/bold], in processes without torch")
    pictures = out / "pictures"
    to = (store, "--out", pictures, "--episode", SUCCESS, "--episode", FAILURE)
    _attnstore("render", "images", *to, "--layers", "0", "--phase", "prefix", quiet=True)
    _attnstore("render", "videos", *to, "--layers", "0,1", "--heads", "active", quiet=True)
    _attnstore("report", store, "--out", out / "report", quiet=True)
    _say_files(out, store, pictures)


def _ingest(out: Path, store: Path, untrained_store: Path) -> None:
    from attnstore.ingest.datasets.droid.dataset import DroidDataset
    from attnstore.ingest.optional import require
    from attnstore.ingest.policies.registry import PolicySpec, load_policy, quiet_libraries
    from attnstore.sample import checkpoint_path, episodes_path
    from attnstore.sample.untrained import save_untrained

    say = console()
    torch: Any = require("torch", "ingest", "the demo")
    # a model this small is slower with more, above all where other programs run
    torch.set_num_threads(1)
    quiet_libraries()
    untrained = out / "untrained"
    if not (untrained / "config.json").exists():
        if untrained.exists():
            raise UsageError(f"{untrained} exists and is no checkpoint; name another --out")
        save_untrained(checkpoint_path(), untrained)
    say.print(
        "\n[bold]1. The policy[/bold]: a Pi0 of 1.8 million parameters, trained on a simulated table"
        "\n   to put cubes into bowls. Two auxiliary losses of its training shape its maps"
        f" ({FINDINGS})."
    )
    for step, checkpoint, target in (
        ("", checkpoint_path(), store),
        (", once more untrained, to compare with", untrained, untrained_store),
    ):
        say.print(f"\n[bold]2. Ingest[/bold] its rollouts{step}")
        run_ingest(
            target,
            DroidDataset(episodes_path(), name="toy_cube"),
            load_policy("pi0", str(checkpoint), dtype="float32"),
            PolicySpec("pi0", str(checkpoint), None, "float32", {}),
            RunChoice(precision="log8", batch_size=4),
        )


def _say_strength(rows: list[Strength]) -> None:
    from rich.console import Console
    from rich.table import Table

    from attnstore.sample.looking import span

    table = Table(
        "tokens → object, camera", "head", "named", "other", "shuffled", "untrained", "hit",
        title="Lift on the object that the instruction names, head by head",
        box=None,
    )  # fmt: skip
    for row in rows:
        asked = row.question
        table.add_row(
            f"{asked.query} → {asked.thing}, {CAMERAS[asked.camera]}",
            "L{:02d} H{:02d}".format(*row.head),
            *(span(row.lift[name]) for name in ("target", "other", "shuffled")),
            span(row.untrained),
            span(row.hit, 2),
        )
    click.echo()
    Console(file=sys.stdout, highlight=False, width=max(130, Console().width)).print(table)
    click.echo(
        "Lift 1 is chance; mean and 95 % interval over episodes. The heads were chosen on other\n"
        "episodes. other: the cube or bowl that is not named. shuffled: the mask of another episode,\n"
        "which says what the place alone is worth. untrained: random weights, their best head.\n"
        "hit: share of keyframes whose largest value points at the named object.\n"
        "Training asked the colour words to look; nothing asked the action tokens."
    )


def _say_files(out: Path, store: Path, pictures: Path) -> None:
    from attnstore.sample import checkpoint_path

    say = console()
    say.print("\n[bold]Look at[/bold]", highlight=False)
    for path, what in (
        (pictures / SUCCESS / "00000" / "prefix_L0_attn_vis_max.jpg",
         "where the words look: the cube and the bowl that are named"),
        (pictures / SUCCESS / "00000" / "L0_prefix_heads", "every head of layer 0"),
        (pictures / SUCCESS / "L00_prefix_max.webm", "the same as a video"),
        (pictures / FAILURE / "L00_prefix_max.webm", "a failure: it drops the cube beside the bowl"),
        (pictures / FAILURE / "L01_suffix_max.webm", "and where its action tokens look"),
        (out / "report" / "report.html", "where each layer looks, one page to send on"),
        (out / "objects" / "report.html", "attention on objects, layer by layer"),
        (store, "the store: open it with attnstore.open, zarr, xarray or duckdb"),
    ):  # fmt: skip
        if not path.exists():
            raise UsageError(f"the demo did not write {path}")
        say.print(f"  {path}  ({what})", soft_wrap=True, markup=False)
    say.print("\nNext:", highlight=False)
    for command, extra in (
        (f'sql {store} "from episodes"', ""),
        (f"compare groups {store} --metric camera_mass --by outcome --phase suffix", ""),
        (f"serve {store} --open", "serve"),
        (
            f"probe fidelity {store} --checkpoint {checkpoint_path()} --every 4 --tolerance 0.1",
            "ingest",
        ),
    ):
        say.print(f"  {program(extra)} {command}", soft_wrap=True, markup=False)
    say.print(
        f"  {FINDINGS}, in attnstore's sources: what holds over more episodes, and what does not",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def program(extra: str) -> str:
    """How whoever runs this runs a command with an extra: by its name, by its path, or by uv again."""
    own = Path(sys.executable).with_name("attnstore")
    found = shutil.which("attnstore")
    if (
        "archive-v0" in own.parts
    ):  # uv's cache: an environment for one command, which no path leads to
        return f"uvx --from 'attnstore[{extra}]' attnstore" if extra else "uvx attnstore"
    if found is not None and Path(found).resolve() == own.resolve():
        return "attnstore"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def _attnstore(*arguments: str | Path, quiet: bool = False) -> None:
    """Show a command, and run it as the user would, in a process of its own."""
    words = [str(argument) for argument in arguments]
    click.echo(f"$ attnstore {' '.join(_quoted(word) for word in words)}")
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, "-m", "attnstore", *words],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL if quiet else None,
    )
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)


def _quoted(word: str) -> str:
    return f'"{word}"' if "'" in word else shlex.quote(word)
