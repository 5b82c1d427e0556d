"""The contract on openpi's JAX models: ``make test-openpi OPENPI=/path/to/checkout``.

openpi's sources run unchanged, compiled as openpi compiles them. Reduced are sizes only, as in
``openpi_real.py``: "dummy" Gemmas, 2 of SigLIP's 27 layers, random weights, saved by orbax as openpi saves.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocking_contract import BlockingContract
from droid_sample import sample_path
from ingest_fixtures import arrays_of
from numpy.typing import NDArray
from openpi_real import NAMES, SIGHTS, STATS, checkpoints, droid_observation
from policy_contract import Case, as_array, model_indices, run_captured

import attnstore
from attnstore.cli import main
from attnstore.ingest.capture import HiddenRecord, Record, capture
from attnstore.ingest.policies.base import LAST, Batch, HiddenChoice, PolicyError, Watch
from attnstore.ingest.policies.checkpoint import files_of
from attnstore.ingest.policies.openpi.jax_policy import OpenpiJaxPolicy
from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
from attnstore.store.errors import UsageError

__all__ = ["checkpoints"]  # what shrinks openpi, and has its tokenizer


def save_jax_checkpoint(directory: Path, name: str, asset: str = "droid") -> Path:
    """A checkpoint of random weights, as ``openpi.training.checkpoints`` saves one."""
    import flax.nnx as nnx
    import orbax.checkpoint as ocp
    from openpi.training.config import get_config

    # Their shapes alone: openpi starts with zeros where training does not, the images' projection among them.
    model = get_config(name).model
    state = nnx.state(nnx.eval_shape(lambda: model.create(jax.random.key(0))))
    rng = np.random.default_rng(0)
    state = jax.tree_util.tree_map_with_path(
        lambda path, value: jnp.asarray(
            random_weights(rng, jax.tree_util.keystr(path), value.shape), jnp.float32
        ),
        state,
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", {"params": state})
    assets = directory / "assets" / asset
    assets.mkdir(parents=True)
    text = json.dumps({"norm_stats": {"state": STATS, "actions": STATS}})
    (assets / "norm_stats.json").write_text(text)
    return directory


def random_weights(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> Any:
    """Weights of a parameter, so wide that a layer leaves its input's size about as it is."""
    if "bias" in path:
        return rng.normal(scale=0.02, size=shape)
    if "scale" in path:
        # 1 + scale is a bfloat16: what JAX adds in bfloat16 and PyTorch in float32 is the same then.
        return np.ones(shape) if "img" in path else rng.integers(-32, 33, shape) / 128
    if "embed" in path:
        return rng.normal(scale=0.05, size=shape)
    inputs = 1152 if "img" in path and len(shape) == 4 else shape[-2]
    return rng.normal(scale=inputs**-0.5, size=shape)


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

    inputs = jax.tree.map(lambda each: jnp.asarray(each.numpy()), dict(batch.inputs))
    noise = inputs.pop("noise")
    run = module_jit(MethodType(chunks, policy.model))
    return list(run(models.Observation.from_dict(inputs), noise, policy.steps))


class OpenpiJaxContract(BlockingContract):
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


@pytest.mark.parametrize("name", NAMES)
def test_all_is_that_of_the_converted_checkpoint(
    jax_checkpoints: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """openpi's own conversion, both in float32: what differs is the rotary frequencies, which PyTorch rounds."""
    convert(jax_checkpoints[name], tmp_path / "torch", name)
    ours = OpenpiJaxPolicy(str(jax_checkpoints[name]), variant=name, dtype="float32")
    torch = OpenpiPolicy(str(tmp_path / "torch"), variant=name, dtype="float32")
    wanted = run_all(ours)
    # openpi loads PyTorch's model in bfloat16, and module.to() takes the buffers along
    assert 1e-4 < furthest(wanted.weights, run_all(torch).weights) < 3e-2
    for module in torch.model.modules():
        if hasattr(module, "rope_init_fn"):
            module.inv_freq.copy_(module.rope_init_fn(module.config, "cpu")[0])
    converted = run_all(torch)
    assert furthest(wanted.weights, converted.weights) < 5e-5
    assert furthest(wanted.norms, converted.norms, relative=True) < 2e-4
    assert furthest(wanted.hidden, converted.hidden, relative=True) < 2e-4
    np.testing.assert_allclose(wanted.actions, converted.actions, atol=2e-4)


Values = dict[tuple[str, int, int | None, int], NDArray[Any]]
"""By phase, layer, step and sample, of tokens and no padding."""


@dataclass
class Everything:
    """What one call shows."""

    actions: NDArray[Any]
    weights: Values = field(default_factory=dict)
    norms: Values = field(default_factory=dict)
    hidden: Values = field(default_factory=dict)


def run_all(policy: Any) -> Everything:
    """Act once, and keep all that a policy shows."""
    batch = policy.prepare(SIGHTS)
    found = Everything(np.zeros(0))

    def keep(record: Record) -> None:
        assert record.norms is not None
        for row, sample in enumerate(batch.samples):
            layout, at = (
                sample.layouts[record.phase],
                (record.phase, record.layer, record.step, row),
            )
            queries, keys = model_indices(layout.query), model_indices(layout.key)
            found.weights[at] = as_array(record.weights)[row][:, queries]
            found.norms[at] = as_array(record.norms)[row][:, keys]

    def keep_hidden(record: HiddenRecord) -> None:
        for row, sample in enumerate(batch.samples):
            own = as_array(record.states)[row]
            if record.layer != LAST:
                own = own[model_indices(sample.layouts[record.phase].query)]
            found.hidden[record.phase, record.layer, record.step, row] = own

    watch = Watch(values=True, hidden=HiddenChoice())
    with capture(policy, keep, watch=watch, hidden=keep_hidden):
        found.actions = as_array(policy.act(batch))
    return found


def furthest(one: Values, two: Values, *, relative: bool = False) -> float:
    """The largest difference, relative to the largest entry of its array if asked."""
    assert list(one) == list(two)
    return max(
        float(np.abs(own - two[at]).max() / (np.abs(own).max() if relative else 1.0))
        for at, own in one.items()
    )


LOW_MEMORY = "pi0_libero_low_mem_finetune"
"""openpi's own configuration, LoRA in both Gemmas."""


@pytest.fixture
def lora_checkpoint(
    jax_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    from openpi.models import gemma
    from openpi.models.lora import LoRAConfig
    from openpi.training import config as configs

    assert jax_checkpoints
    sizes, own = gemma.get_config, configs.get_config(LOW_MEMORY)
    assert (own.model.paligemma_variant, own.model.action_expert_variant) == (
        "gemma_2b_lora", "gemma_300m_lora",
    )  # fmt: skip
    # scaled by 2 in the attention; openpi's feed-forward layers do not scale
    adapters = {part: LoRAConfig(rank=4, alpha=8.0) for part in ("attn", "ffn")}

    def with_lora(variant: Any) -> Any:
        if variant == "dummy_lora":
            return replace(sizes("dummy"), lora_configs=adapters)
        return sizes(variant)

    monkeypatch.setattr(gemma, "get_config", with_lora)
    for name, variant in ((LOW_MEMORY, "dummy_lora"), ("pi0_libero", "dummy")):
        config = configs.get_config(name)
        model = replace(config.model, paligemma_variant=variant, action_expert_variant=variant)
        monkeypatch.setitem(configs._CONFIGS_DICT, name, replace(config, model=model))
    return save_jax_checkpoint(tmp_path / "lora", LOW_MEMORY, "physical-intelligence/libero")


def test_lora_adapters_are_in_what_is_captured(lora_checkpoint: Path, tmp_path: Path) -> None:
    """As the plain model whose weights have the adapters added, by NumPy; not as the base model."""
    import orbax.checkpoint as ocp
    from flax import nnx
    from openpi.models.model import restore_params

    bare = tmp_path / "bare"
    params = restore_params(lora_checkpoint / "params", restore_type=np.ndarray)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(bare / "params", {"params": without_adapters(params)})
    (bare / "assets").symlink_to(lora_checkpoint / "assets")
    trained = OpenpiJaxPolicy(str(lora_checkpoint), variant=LOW_MEMORY, dtype="float32")
    found = run_all(trained)
    plain = OpenpiJaxPolicy(str(bare), variant="pi0_libero", dtype="float32")
    assert furthest(found.weights, run_all(plain).weights) > 0.02
    state = nnx.state(plain.model)
    rounded = jax.tree.map(
        lambda own: own.astype(np.float32), nnx.state(trained.model).to_pure_dict()
    )
    state.replace_by_pure_dict(merged(rounded))
    nnx.update(plain.model, state)
    again = OpenpiJaxPolicy(str(bare), variant="pi0_libero", dtype="float32")
    again.__dict__["theirs"] = type(plain.theirs)(plain.model)
    wanted = run_all(again)
    # Adapters beside the weights round otherwise than within them: 7e-5 was seen.
    assert furthest(found.weights, wanted.weights) < 2e-4
    assert furthest(found.norms, wanted.norms, relative=True) < 1e-3
    assert furthest(found.hidden, wanted.hidden, relative=True) < 1e-3
    np.testing.assert_allclose(found.actions, wanted.actions, atol=1e-3)
    kind = trained.prepare(SIGHTS[:1]).samples[0].layouts["prefix"].key.spans[-1].name
    assert kind == "newline"


def without_adapters(params: Any) -> Any:
    """The base model's parameters."""
    if not isinstance(params, dict):
        return params
    return {k: without_adapters(own) for k, own in params.items() if "lora" not in k}


def merged(params: Any) -> Any:
    """Parameters with their LoRA adapters added: what ``lora.py`` multiplies with, written out."""
    if not isinstance(params, dict):
        return params
    found = {k: merged(own) for k, own in params.items() if "lora" not in k}
    for key, own in params.items():
        if key == "lora_a":
            a, b = np.asarray(own), np.asarray(params["lora_b"])
            # The output projection's adapter goes through one rank for all heads together.
            b = b.sum(-3, keepdims=True) if is_output(params["w"].shape) else b
            found["w"] = np.asarray(params["w"]) + 2.0 * (a @ b)
        elif key.endswith("_lora_a"):
            name = key.removesuffix("_lora_a")
            found[name] = np.asarray(params[name]) + np.asarray(own) @ np.asarray(
                params[f"{name}_lora_b"]
            )
    return found


def is_output(shape: tuple[int, ...]) -> bool:
    """Whether it is (layer, head, feature, width), and not (layer, head, width, feature)."""
    return shape[-2:] == (16, 64)


def test_value_norms_are_those_of_the_parameters(
    jax_policies: dict[str, OpenpiJaxPolicy], jax_checkpoints: dict[str, Path]
) -> None:
    """Of the prefix' keys, by NumPy, of the values in openpi's own cache, through both projections."""
    from openpi.models import model as models
    from openpi.models.pi0 import make_attn_mask
    from openpi.shared.nnx_utils import module_jit

    policy = jax_policies["pi0_droid"]
    batch = policy.prepare(SIGHTS)

    def cached(self: Any, seen: Any) -> Any:
        tokens, valid, blocks = self.embed_prefix(
            models.preprocess_observation(None, seen, train=False)
        )
        mask, places = make_attn_mask(valid, blocks), jnp.cumsum(valid, axis=1) - 1
        return self.PaliGemma.llm([tokens, None], mask=mask, positions=places)[1][1]

    inputs = jax.tree.map(lambda each: jnp.asarray(each.numpy()), dict(batch.inputs))
    del inputs["noise"]
    run = module_jit(MethodType(cached, policy.model))
    values = np.asarray(run(models.Observation.from_dict(inputs))).astype(np.float32)[:, :, :, 0]
    params = models.restore_params(
        jax_checkpoints["pi0_droid"] / "params", restore_type=np.ndarray, dtype=jnp.bfloat16
    )
    attention = params["PaliGemma"]["llm"]["layers"]["attn"]
    found: dict[tuple[str, int], NDArray[Any]] = {}

    def keep(record: Record) -> None:
        found.setdefault((record.phase, record.layer), as_array(record.norms))

    with capture(policy, keep, watch=Watch(values=True)):
        policy.act(batch)
    for phase, name in (("prefix", "attn_vec_einsum"), ("suffix", "attn_vec_einsum_1")):
        weights = attention[name]["w"].astype(np.float32)
        for layer in range(4):
            wanted = np.linalg.norm(
                np.einsum("bkf,hfd->bhkd", values[layer], weights[layer]), axis=-1
            )
            own = found[phase, layer][:, :, : wanted.shape[-1]]
            np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)


def test_checked_ingested_drawn_and_asked_from_the_command_line(
    jax_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a lab types, on DROID episodes."""
    store, pictures = str(tmp_path / "s"), tmp_path / "pictures"
    checkpoint = str(jax_checkpoints["pi05_droid"])
    adapter = ("--policy", "openpi-jax:pi05_droid")
    few = ("--limit", "1", "--stride", "16")

    def attnstore_says(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as done:
            main([str(each) for each in arguments])
        said = capsys.readouterr()
        assert not done.value.code, said.err
        return said.out

    said = attnstore_says("doctor", checkpoint, sample_path(), *adapter, *few)
    assert "rows sum to 1 within" in said
    assert said.endswith("nothing was found that would fail\n")
    attnstore_says(
        "ingest", "droid", store, sample_path(), *adapter, "--checkpoint", checkpoint, *few
    )
    assert attnstore_says("verify", store)
    attnstore_says("render", "images", store, "--out", str(pictures))
    assert [path for path in pictures.rglob("*") if path.is_file()]
    counted = "select phase, count(*) from head_stats group by all order by 1"
    # 2 keyframes of 4 layers of 8 heads, 2 cameras, raw and by value; of the suffix 10 steps
    rows = attnstore_says("sql", store, counted, "--csv").split()[1:]
    assert rows == ["prefix,256", "suffix,2560"]
    (name,) = attnstore_says("sql", store, "select name from episodes", "--csv").split()[1:]
    with attnstore.open(store) as opened:
        episode = opened.episode(name)
        assert episode.attention("suffix", layer=3, query="action", step="last").shape[-2] == 15
        shown = set(arrays_of(episode.part))
    assert {"prefix/value_norm", "suffix/value_norm", "policy/denoising"} <= shown
    assert [name for name in shown if "hidden" in name]


def convert(checkpoint: Path, directory: Path, name: str) -> None:
    """What ``examples/convert_jax_model_to_pytorch.py`` does, its functions at the reduced sizes."""
    import torch
    from openpi.models.gemma import get_config as gemma
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
    from openpi.training.config import get_config
    from safetensors.torch import save_model

    path = Path(os.environ["OPENPI"]) / "examples" / "convert_jax_model_to_pytorch.py"
    spec = importlib.util.spec_from_file_location("convert_jax_model_to_pytorch", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = get_config(name).model
    size = gemma("dummy")
    text = SimpleNamespace(
        hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.num_heads,
        head_dim=size.head_dim, intermediate_size=size.mlp_dim,
    )  # fmt: skip
    vision = SimpleNamespace(hidden_size=1152, num_hidden_layers=2, num_attention_heads=16)
    params = script.slice_initial_orbax_checkpoint(str(checkpoint), "float32")
    pali, rest = script.slice_paligemma_state_dict(
        params["paligemma_params"], SimpleNamespace(vision_config=vision, text_config=text)
    )
    for key, value in pali.items():
        # Its bytes are (width, heads x head_dim); it is given a shape that is true where both are 2048.
        if ".o_proj." in key:
            pali[key] = value.reshape(size.width, -1)
    expert = script.slice_gemma_state_dict(
        rest, size, num_expert=1, checkpoint_dir=str(checkpoint), pi05=config.pi05
    )
    projections = {}
    for key, value in params["projection_params"].items():
        if key != "PaliGemma":
            projections[f"{key}.weight"] = torch.from_numpy(np.array(value["kernel"])).T
            projections[f"{key}.bias"] = torch.from_numpy(np.array(value["bias"]))
    model = PI0Pytorch(replace(config, pytorch_compile_mode=None))
    lost, unknown = model.load_state_dict({**pali, **expert, **projections}, strict=False)
    assert not unknown
    # Tied to the embedding, or never called.
    assert not [key for key in lost if "lm_head" not in key and "embed_tokens" not in key], lost
    directory.mkdir()
    save_model(model.to(torch.bfloat16), str(directory / "model.safetensors"))
    (directory / "assets").symlink_to(checkpoint / "assets")


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
