"""``attnstore record``: what policies saw while they drove."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import PartialError, UsageError

from .ingest_choices import precision_option, token_stats_option, vision_option
from .options import (
    F,
    FiniteNumber,
    StoreCommand,
    StoreGroup,
    StoreName,
    adapter_options,
    add_options,
    grouped,
    json_option,
    layers_option,
    on_this_machine,
    revision_option,
    store_to_write,
)
from .output import print_json, say

if TYPE_CHECKING:
    from attnstore.ingest.recording.lerobot import EvalRecorder
    from attnstore.ingest.recording.recorder import Mode


@click.group(cls=StoreGroup)
def record() -> None:
    """Record policies that drive: those of `lerobot-eval` and of openpi's server, in Python any."""


def kept_options(mode: Mode, name: str) -> Callable[[F], F]:
    """Add what is kept of every call, and how; the command gets it as ``kept``, and its defaults are these."""
    return grouped(
        "kept",
        dict,
        click.option(
            "--mode",
            type=click.Choice(["live", "replay"]),
            default=mode,
            show_default=True,
            help="live: capture in the forward, eager and uncompiled; replay: keep what the policy saw, for "
            "`attnstore ingest recording`.",
        ),
        click.option("--name", default=name, show_default=True, help="Name of the recording."),
        precision_option,
        vision_option,
        token_stats_option,
        click.option(
            "--pictures",
            type=click.Choice(["jpeg", "png"]),
            default="jpeg",
            show_default=True,
            help="How camera images are kept; png exactly, so that `attnstore probe` does the same again.",
        ),
        click.option(
            "--rerun",
            metavar="spawn|URL|DIR",
            help="Show it in a Rerun viewer meanwhile: spawn starts one, rerun+http://HOST:9876/proxy is one, a "
            "directory takes an .rrd file an episode.",
        ),
    )


class _EvalCommand(StoreCommand):
    """A command whose arguments behind STORE are another program's."""

    def expected_arguments(self, options: dict[str, Any], given: Sequence[str]) -> int:
        """One: STORE."""
        return 1


@record.command("lerobot-eval", cls=_EvalCommand)
@store_to_write
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- ARGUMENTS")
@add_options(kept_options("live", "lerobot-eval"))
@json_option
def lerobot_eval(
    store: StoreName,
    arguments: tuple[str, ...],
    kept: dict[str, Any],
    as_json: bool,
) -> None:
    """Run LeRobot's own lerobot-eval, and record its policy.

    ARGUMENTS, behind two dashes, are lerobot-eval's: it does with them what it does alone, from the same
    random numbers. Every chunk that the policy is asked for is a keyframe, every episode has the outcome and
    the reward that lerobot-eval counts, failures as well as successes.

    Examples
    --------
    attnstore record lerobot-eval lab.attn -- --policy.path=lerobot/act_aloha_sim_transfer_cube_human --env.type=aloha
    attnstore record lerobot-eval lab.attn --mode replay -- --policy.path=DIR --env.type=pusht --eval.n_episodes=50
    """
    from attnstore.ingest.recording.lerobot import EvalRecorder

    local = on_this_machine(store)
    recording = EvalRecorder(local, kept)
    run_lerobot_eval(recording, arguments)
    recorder = recording.recorder
    if recorder is None:
        raise UsageError("lerobot-eval ran no rollout, so nothing was recorded")
    lost = [o for o in recorder.outcomes if o.status not in ("committed", "present")]
    said = {
        "event": "recorded", "episodes": len(recording.ended), "mode": kept["mode"],
        "successes": recording.ended.count("success"), "failures": recording.ended.count("failure"),
        "committed": len(recorder.outcomes) - len(lost), "faults": dict(recorder.faults),
    }  # fmt: skip
    if as_json:
        print_json([said])
    else:
        click.echo(
            f"{said['episodes']} episodes recorded in {recorder.directory}: {said['successes']} successes, "
            f"{said['failures']} failures"
        )
        if kept["mode"] == "replay":
            click.echo(
                f"attnstore ingest recording {local} --policy lerobot --checkpoint "
                f"{recording.checkpoint} captures from it"
            )
    if lost:
        lines = "".join(f"\n  {o.name}: {o.reason}" for o in lost)
        raise PartialError(f"{len(lost)} of {len(recorder.outcomes)} are not in the store:{lines}")


@record.command()
@store_to_write
@click.option("--config", metavar="NAME", required=True, help="openpi's configuration: pi05_droid.")
@click.option(
    "--checkpoint",
    metavar="PATH|HUB_ID",
    required=True,
    help="Converted checkpoint, with assets/ beside the weights.",
)
@revision_option
@add_options(kept_options("replay", "openpi"))
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port."
)
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option("--dtype", help="Data type of the weights.  [default: bfloat16, as openpi's]")
@adapter_options
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Whether openpi compiles the model.  [default: in replay, as the configuration says]",
)
@click.option("--default-prompt", metavar="TEXT", help="Instruction for messages that have none.")
@click.option("--rate", type=FiniteNumber(), help="Environment steps a second, if known.")
@click.option(
    "--steps-per-call",
    type=click.IntRange(min=1),
    help="Actions carried out between calls, where the client does not say: openpi's DROID client 8, "
    "its LIBERO client 5.",
)
@click.option(
    "--pause",
    type=FiniteNumber(),
    metavar="SECONDS",
    help="A call so long after the one before begins an episode.",
)
@click.option("--by-prompt", is_flag=True, help="Another prompt begins an episode.")
def openpi(
    store: StoreName,
    config: str,
    checkpoint: str,
    revision: str | None,
    kept: dict[str, Any],
    host: str,
    port: int,
    device: str,
    dtype: str | None,
    pairs: tuple[str, ...],
    compiled: bool | None,
    default_prompt: str | None,
    rate: float | None,
    steps_per_call: int | None,
    pause: float | None,
    by_prompt: bool,
) -> None:
    """Serve an openpi policy by openpi's own server, and record every call.

    Clients need no change: a connection is an episode. A client may say more, by keys beside its
    observation: attnstore/episode (a name; a new one begins an episode), attnstore/outcome (success or
    failure; ends it), attnstore/reward, attnstore/step, attnstore/task, attnstore/seed. A message of such
    keys alone is not shown to the policy.

    Examples
    --------
    attnstore record openpi robot.attn --config pi05_droid --checkpoint CHECKPOINT --device cuda
    attnstore record openpi sim.attn --config pi05_libero --checkpoint CHECKPOINT --mode live
    """
    from attnstore.ingest.policies.base import watch_where_shown
    from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
    from attnstore.ingest.policies.registry import parse_options
    from attnstore.ingest.recording.openpi import RecordingPolicy, serve
    from attnstore.ingest.recording.recorder import record as record_policy

    local = on_this_machine(store)
    policy = OpenpiPolicy(
        checkpoint,
        variant=config,
        dtype=dtype,
        device="cuda:0" if device == "cuda" else device,
        revision=revision,
        options=parse_options(pairs),
        compiled=kept["mode"] == "replay" if compiled is None else compiled,
    )
    watch = watch_where_shown(
        policy, vision=kept.pop("vision"), token_stats=kept.pop("token_stats")
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # recorded until then, and ended
    with record_policy(policy, local, rate=rate, watch=watch, **kept) as recorder:
        served = RecordingPolicy(
            recorder,
            prompt=default_prompt,
            pause=pause,
            by_prompt=by_prompt,
            steps_per_call=steps_per_call,
        )
        say(
            f"ws://{host}:{port} serves {config} and records ({kept['mode']}) into {recorder.directory}"
        )
        with contextlib.suppress(KeyboardInterrupt):
            serve(served, host, port)


@record.command()
@store_to_write
@click.option("--rerun", metavar="spawn|URL|DIR", default="spawn", show_default=True,
              help="Where: start a viewer, the address of one, or a directory for .rrd files.")  # fmt: skip
@click.option("--recording", metavar="NAME", help="Only this recording.  [default: all]")
@layers_option
@click.option("--until-closed", is_flag=True, hidden=True,
              help="End when stdin is closed: what started it has ended.")  # fmt: skip
@click.option("--since", type=float, hidden=True, help="Seconds since 1970.")
@json_option
def watch(
    store: StoreName,
    rerun: str,
    recording: str | None,
    layers: tuple[int, ...] | None,
    until_closed: bool,
    since: float | None,
    as_json: bool,
) -> None:
    """Show episodes in a Rerun viewer while they are recorded.

    What is shown is read from the files that the recorder writes: the policy does not wait for it, wherever it
    runs on this machine. In live mode images with heat, maps, shares of every camera, actions, outcome; in replay
    mode all but attention. It ends with Ctrl-C.

    Examples
    --------
    attnstore record watch lab.attn
    attnstore record watch lab.attn --rerun rerun+http://127.0.0.1:9876/proxy --layers 4,5
    """
    from attnstore.ingest.recording.onlooker import check_rerun
    from attnstore.render.export.live import watch as watch_recordings
    from attnstore.store.commits import StorePaths, slug

    target, paths = check_rerun(rerun), StorePaths(on_this_machine(store))
    assert target is not None
    chosen = "*"
    if recording is not None:
        chosen = recording if (paths.recordings / recording).is_dir() else slug(recording)
    stop = threading.Event()

    def ready() -> None:
        if as_json:
            print_json([{"event": "watching"}])
            sys.stdout.flush()
        else:
            say(f"watching {paths.recordings}; Ctrl-C ends it")

    if until_closed:

        def read() -> None:
            sys.stdin.buffer.read()
            stop.set()

        threading.Thread(target=read, daemon=True).start()
    else:
        signal.signal(signal.SIGINT, lambda *_: stop.set())
    watched = watch_recordings(
        paths.recordings, target, ended=stop.is_set, since=since or time.time(), recording=chosen,
        layers=layers, say=say, ready=ready,
    )  # fmt: skip
    if as_json:
        print_json([{"event": "watched", **asdict(watched), "said": str(watched)}])
    else:
        say(str(watched))
    # Rerun's own end waits for a viewer that does not read, however long it takes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@record.command()
@store_to_write
@json_option
def recover(store: StoreName, as_json: bool) -> None:
    """End the episodes of processes that were killed while they recorded.

    STORE may also be the directory of one recording.

    Their outcome is unknown, until `attnstore outcomes` says it. What of a file is no whole entry is
    moved to a file beside it. Episodes that are being recorded on this host are left alone.

    Examples
    --------
    attnstore record recover lab.attn
    attnstore record recover lab.attn/recordings/NAME
    """
    from attnstore.ingest.recording.dataset import recording_directories
    from attnstore.ingest.recording.dataset import recover as recover_directory

    done = [
        {"recording": directory.name, **each}
        for directory in recording_directories(on_this_machine(store))
        for each in recover_directory(directory)
    ]
    if as_json:
        print_json(done)
    else:
        for each in done:
            name = each.get("name") or each["file"]
            calls = "1 call" if each["calls"] == 1 else f"{each['calls']} calls"
            click.echo(f"{each['status']}: {name}: {calls}; {each['reason']}")
        if not done:
            click.echo("every episode was ended")
    if bad := [each["file"] for each in done if each["status"] == "unreadable"]:
        raise PartialError(f"{len(bad)} files are no journals that can be read: {', '.join(bad)}")


def run_lerobot_eval(recording: EvalRecorder, arguments: Sequence[str]) -> None:
    """Run ``lerobot-eval`` as its own command does, recorded.

    Raises
    ------
    MissingExtraError
        If LeRobot is not installed.
    UsageError
        If lerobot-eval does not take its arguments.
    """
    from attnstore.ingest.optional import require

    module = require("lerobot.scripts.lerobot_eval", "lerobot", "record lerobot-eval")
    before = sys.argv
    sys.argv = ["lerobot-eval", *arguments]
    try:
        with recording.around(module):
            module.main()
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise UsageError(
                "lerobot-eval does not take its arguments; what is behind -- is its own: "
                f"{' '.join(arguments) or 'nothing was given'}"
            ) from None
    finally:
        sys.argv = before
