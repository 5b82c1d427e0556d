"""The contract on openpi's JAX models: ``make test-openpi OPENPI=/path/to/checkout``.

openpi's sources run unchanged, compiled as openpi compiles them. Reduced are sizes only, as in
``openpi_real.py``: "dummy" Gemmas, 2 of SigLIP's 27 layers, random weights, saved by orbax as openpi saves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from openpi_real import NAMES, SIGHTS, STATS, checkpoints, droid_observation
from policy_contract import Case, PolicyContract, as_array, run_captured

from attnstore.ingest.policies.base import Batch, PolicyError
from attnstore.ingest.policies.checkpoint import files_of
from attnstore.ingest.policies.openpi.jax_policy import OpenpiJaxPolicy
from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
from attnstore.store.errors import UsageError

__all__ = ["checkpoints"]  # what shrinks openpi, and has its tokenizer


def save_jax_checkpoint(directory: Path, name: str) -> Path:
    """A checkpoint of random weights, as ``openpi.training.checkpoints`` saves one."""
    import flax.nnx as nnx
    import orbax.checkpoint as ocp
    from openpi.training.config import get_config

    state = nnx.state(get_config(name).model.create(jax.random.key(0)))
    rng = np.random.default_rng(0)

    def filled(path: Any, value: Any) -> Any:
        # openpi starts with zeros where training does not: the time would not be seen.
        if "img" in str(path) or "embedder" in str(path) or value.ndim < 2:
            return value
        width = np.sqrt(np.prod(value.shape[-2:]) / value.shape[-1])
        return jnp.asarray(rng.normal(scale=1.5 / width, size=value.shape), jnp.float32)

    state = jax.tree_util.tree_map_with_path(filled, state)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", {"params": state})
    assets = directory / "assets" / "droid"
    assets.mkdir(parents=True)
    text = json.dumps({"norm_stats": {"state": STATS, "actions": STATS}})
    (assets / "norm_stats.json").write_text(text)
    return directory


@pytest.fixture(scope="session")
def jax_checkpoints(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    from openpi.models import siglip

    sizes = siglip.decode_variant
    root = tmp_path_factory.mktemp("openpi-jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siglip, "decode_variant", lambda name: {**sizes(name), "depth": 2})
        yield {name: save_jax_checkpoint(root / name, name) for name in NAMES}


@pytest.fixture(scope="session")
def jax_policies(jax_checkpoints: dict[str, Path]) -> dict[str, OpenpiJaxPolicy]:
    return {n: OpenpiJaxPolicy(str(d), variant=n) for n, d in jax_checkpoints.items()}


def euler(policy: OpenpiJaxPolicy, batch: Batch) -> list[Any]:
    """The chunk after each step: openpi's velocities, a loop of our own that keeps them all."""
    from openpi.models import model as models
    from openpi.models.pi0 import make_attn_mask
    from openpi.shared.nnx_utils import module_jit

    def chunks(self: Any, seen: Any, noise: Any, steps: Any) -> Any:
        seen = models.preprocess_observation(None, seen, train=False)
        count, dt = len(noise), -1.0 / steps
        tokens, valid, blocks = self.embed_prefix(seen)
        places = jnp.cumsum(valid, axis=1) - 1
        mask = make_attn_mask(valid, blocks)
        _, cache = self.PaliGemma.llm([tokens, None], mask=mask, positions=places)

        def step(carry: Any) -> Any:
            chunk, time, number, kept = carry
            own, there, order, norm = self.embed_suffix(seen, chunk, jnp.broadcast_to(time, count))
            before = jnp.broadcast_to(valid[:, None], (count, own.shape[1], valid.shape[1]))
            mask = jnp.concatenate([before, make_attn_mask(there, order)], axis=-1)
            places = jnp.sum(valid, axis=-1)[:, None] + jnp.cumsum(there, axis=-1) - 1
            (_, out), _ = self.PaliGemma.llm(
                [None, own], mask=mask, positions=places, kv_cache=cache, adarms_cond=[None, norm]
            )
            chunk = chunk + dt * self.action_out_proj(out[:, -self.action_horizon :])
            return chunk, time + dt, number + 1, kept.at[number].set(chunk)

        kept = jnp.zeros((policy.steps, *noise.shape), noise.dtype)
        start = (noise, 1.0, 0, kept)
        return jax.lax.while_loop(lambda carry: carry[1] >= -dt / 2, step, start)[-1]

    from types import MethodType

    inputs = jax.tree.map(lambda each: jnp.asarray(each.numpy()), dict(batch.inputs))
    noise = inputs.pop("noise")
    run = module_jit(MethodType(chunks, policy.model))
    return list(run(models.Observation.from_dict(inputs), noise, policy.steps))


class OpenpiJaxContract(PolicyContract):
    config: str

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, jax_policies: dict[str, OpenpiJaxPolicy]) -> Case:
        policy = jax_policies[cls.config]
        return Case(policy, SIGHTS, euler=lambda batch: euler(policy, batch))


class TestPi05(OpenpiJaxContract):
    config = "pi05_droid"


class TestPi0(OpenpiJaxContract):
    config = "pi0_droid"


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_those_of_openpis_own_infer(
    jax_checkpoints: dict[str, Path], jax_policies: dict[str, OpenpiJaxPolicy], name: str
) -> None:
    """The same observation through ``Policy.infer`` of an openpi policy without the adapter: bit for bit."""
    from openpi.policies.policy_config import create_trained_policy
    from openpi.training.config import get_config

    theirs = create_trained_policy(get_config(name), jax_checkpoints[name])
    ours = jax_policies[name]
    batch = ours.prepare(SIGHTS[1:])
    wanted = theirs.infer(droid_observation(SIGHTS[1]), noise=batch.inputs["noise"].numpy())
    captured = run_captured(ours, batch)
    outputs = {"state": as_array(batch.inputs["state"])[0], "actions": captured.actions[0]}
    np.testing.assert_array_equal(theirs._output_transform(outputs)["actions"], wanted["actions"])


def test_messages(jax_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = str(jax_checkpoints["pi05_droid"])
    found = OpenpiJaxPolicy.recognises(files_of(Path(directory)))
    assert found is not None
    assert found.name == "openpi-jax"
    assert OpenpiPolicy.recognises(files_of(Path(directory))) is None
    with pytest.raises(PolicyError, match="no params/ in it"):
        OpenpiJaxPolicy(str(tmp_path), variant="pi05_droid")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES"):
        OpenpiJaxPolicy(directory, variant="pi05_droid", device="cuda").theirs  # noqa: B018
