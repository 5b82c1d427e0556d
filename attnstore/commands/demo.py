"""``attnstore demo``: the main job on the sample episodes that the package carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from attnstore.store.errors import UsageError

from .ingest_run import run_ingest
from .options import console
from .progress import quiet_libraries

QUESTIONS = (
    ("What is in the store?",
     "select outcome, count(*) episodes, sum(keyframes) keyframes from episodes "
     "group by outcome order by 1"),
    ("Which heads of the prefix look at one place of the wrist camera most sharply?",
     "select layer, head, round(avg(entropy_mean), 3) entropy, "
     "round(avg(camera_mass_mean), 3) on_camera from episode_stats "
     "where phase = 'prefix' and camera = 'hand_camera' "
     "group by layer, head order by entropy limit 5"),
    ("How much attention does the letterbox draw, by camera and layer?",
     "select camera, layer, round(avg(letterbox_mass_mean), 3) letterbox, "
     "round(avg(camera_mass_mean), 3) image from episode_stats where phase = 'suffix' "
     "group by camera, layer order by camera, layer"),
    ("Which words does the prompt have, as the policy reads it?",
     "select name, string_agg(trim(text), '|' order by \"index\") tokens from tokens "
     "join episodes using (run, episode) where phase = 'prefix' and axis = 'key' and keyframe = 0 "
     "and role = 'task' group by name order by name"),
)  # fmt: skip


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for checkpoint, store and pictures.",
)
def demo(out: Path) -> None:
    """Ingest sample episodes with a tiny Pi0, ask the store, draw images and a video.

    The policy has the real architecture and random weights: the pictures show how attnstore works,
    not how a trained policy looks.
    """
    from attnstore.ingest.datasets.droid import DroidDataset
    from attnstore.ingest.optional import require
    from attnstore.ingest.policies.base import load_policy
    from attnstore.ingest.workers import PolicySpec
    from attnstore.sample import sample_path

    require("torch", "ingest", "the demo")
    say = console()
    checkpoint, store = out / "tiny-pi0", out / "demo.attn"
    quiet_libraries()
    if not (checkpoint / "config.json").exists():
        if checkpoint.exists():
            raise UsageError(f"{checkpoint} exists and is no checkpoint; name another --out")
        from attnstore.ingest.policies.tiny import save_tiny_pi0

        say.print("\n[bold]1. A tiny Pi0[/bold] of the real architecture, random weights")
        # 112 pixels, 8 x 8 patches a camera: coarse, but enough to see where heat lies.
        save_tiny_pi0(checkpoint, layers=6, image=112)
    say.print(f"\n[bold]2. Ingest[/bold] {sample_path().name} sample: 2 successes, 2 failures")
    spec = PolicySpec("pi0", str(checkpoint), None, None, {})
    run_ingest(
        store,
        load_policy("pi0", str(checkpoint)),
        spec,
        DroidDataset(sample_path(), name="sample"),
        stride=8,
        precision="float16",
        seed=0,
        batch_size=4,
        workers=1,
        device="cpu",
    )
    say.print("\n[bold]3. Ask[/bold] (attnstore sql)")
    for question, query in QUESTIONS:
        click.echo(f"\n-- {question}\n{query};")
        _attnstore("sql", query, "--store", str(store))
    say.print("\n[bold]4. Draw[/bold] (attnstore render; a process without torch)")
    pictures = out / "pictures"
    _attnstore(
        "render",
        "images",
        "--store",
        str(store),
        "--out",
        str(pictures),
        "--layers",
        "1,4,5",
        "--no-heads",
    )
    episode = "success/2025-12-10/2025-12-10_09-00-39"
    _attnstore(
        "render",
        "images",
        "--store",
        str(store),
        "--out",
        str(pictures),
        "--layers",
        "5",
        "--episode",
        episode,
    )
    _attnstore(
        "render",
        "video",
        "--store",
        str(store),
        "--out",
        str(pictures),
        "--layers",
        "1,4,5",
        "--no-heads",
    )
    folder = pictures / episode
    say.print("\n[bold]Look at[/bold]", highlight=False)
    for path, what in (
        (
            folder / "00000" / "prefix_L5_attn_vis_max.jpg",
            "layer 5's most active head, text to image",
        ),
        (folder / "00000" / "L5_prefix_heads", "every head of layer 5"),
        (folder / "L05_suffix_max.webm", "where the action tokens look, as a video"),
        (store, "the store: open it with attnstore.open, zarr, xarray or duckdb"),
    ):
        if not path.exists():
            raise UsageError(f"the demo did not write {path}")
        say.print(f"  {path}  ({what})", soft_wrap=True, markup=False)
    say.print(f'\nNext: attnstore sql "from episodes" --store {store}', markup=False)


def _attnstore(*arguments: str) -> None:
    """Run a command as the user would, in a process of its own."""
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "attnstore", *arguments], check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)
