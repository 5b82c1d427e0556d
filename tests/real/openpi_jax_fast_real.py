"""The contract on openpi's Pi0-FAST in JAX: ``make test-openpi OPENPI=/path/to/checkout``.

openpi's sources run unchanged, compiled as openpi compiles them; reduced are sizes only. With random weights
such a policy writes no action: this one is taught three chunks, as openpi's own transforms write them with a
tokenizer with FAST's seams (`openpi_fast_words`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocking_contract import BlockingContract
from droid_sample import sample_path
from ingest_fixtures import observe
from numpy.typing import NDArray
from openpi_fast_words import paligemma_words, save_fast_words, waves
from openpi_jax_real import merged, save_jax_checkpoint
from openpi_real import STATS, droid_observation
from policy_contract import Case, as_array, model_indices, run_captured

import attnstore
from attnstore.cli import main
from attnstore.ingest.capture import HiddenRecord, Record, capture
from attnstore.ingest.policies.base import LAST, HiddenChoice, PolicyError, Watch
from attnstore.ingest.policies.openpi.checkpoint import OpenpiJaxCheckpoint
from attnstore.ingest.policies.openpi.jax_fast import OpenpiJaxFastPolicy, load_openpi_jax
from attnstore.store.errors import UsageError
from attnstore.store.format.generated import at_step

NAME = "pi0_fast_droid"
LORA = "pi0_fast_droid_lora"
"""The same with LoRA, random weights: openpi has such a configuration for LIBERO alone."""
HORIZON, DOF, LAYERS, HEADS, WIDTH, FEATURES = 4, 8, 2, 2, 64, 16
STILL = "wipe"
KNOWN = 0.003
"""Loss at which the lessons are known, in bfloat16, too."""


def chunks(count: int) -> NDArray[np.float32]:
    """Smooth normalised action chunks, (count, action, dimension)."""
    rng = np.random.default_rng(5)
    ends = rng.uniform(-1, 1, (2, count, 1, DOF))
    along = np.linspace(0, 1, HORIZON)[None, :, None]
    return np.asarray(ends[0] * (1 - along) + ends[1] * along, np.float32)


def lessons() -> list[tuple[Any, NDArray[np.float32]]]:
    """Observations with the chunk that the policy writes; pictures alone tell the first two apart."""
    state = observe(0).state
    sights = [replace(observe(n, size=(72, 128)), state=state) for n in (1, 2)]
    sights.append(observe(3, STILL, size=(72, 128)))
    taught = chunks(len(sights))
    taught[2] = taught[2, :1]  # a robot that stands still is said in fewer tokens
    return list(zip(sights, taught, strict=True))


def steps_at_most(patch: pytest.MonkeyPatch, steps: int) -> None:
    from openpi.models.pi0_fast import Pi0FAST

    patch.setitem(Pi0FAST.sample_actions.__kwdefaults__, "max_decoding_steps", steps)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import ml_collections  # type: ignore[import-not-found]
    from openpi.models import gemma_fast, siglip
    from openpi.models.lora import LoRAConfig
    from openpi.training import config as configs

    root = tmp_path_factory.mktemp("openpi-jax-fast")
    words = paligemma_words()
    (root / "data" / "big_vision").mkdir(parents=True)
    (root / "data" / "big_vision" / "paligemma_tokenizer.model").write_bytes(words)
    fast = save_fast_words(root / "fast", chunks(64))
    sizes, vision = gemma_fast.get_config, siglip.decode_variant

    def small(variant: str) -> Any:
        found = dict(sizes(variant)) | {
            "width": WIDTH, "depth": LAYERS, "mlp_dim": 128, "num_heads": HEADS,
            "head_dim": FEATURES, "vocab_size": pieces(words),
        }  # fmt: skip
        if "lora_configs" in found:
            # scaled by 2 in the attention; openpi's feed-forward layers do not scale
            found["lora_configs"] = {p: LoRAConfig(rank=4, alpha=8.0) for p in ("attn", "ffn")}
        return ml_collections.ConfigDict(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENPI_DATA_HOME", str(root / "data"))
        patch.setattr(gemma_fast, "get_config", small)
        smaller = {"width": 48, "depth": 2, "mlp_dim": 96, "num_heads": 4}
        patch.setattr(siglip, "decode_variant", lambda name: {**vision(name), **smaller})
        steps_at_most(patch, 48)
        config = configs.get_config(NAME)
        model = replace(
            config.model, action_horizon=HORIZON, max_token_len=100,
            fast_model_tokenizer_kwargs={"fast_tokenizer_path": str(fast)},
        )  # fmt: skip
        patch.setitem(configs._CONFIGS_DICT, NAME, replace(config, model=model))
        trained = replace(model, paligemma_variant="gemma_2b_lora")
        patch.setitem(configs._CONFIGS_DICT, LORA, replace(config, name=LORA, model=trained))
        yield teach(save_jax_checkpoint(root / "random", NAME), root / "taught")


def pieces(words: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    return int(SentencePieceProcessor(model_proto=words).get_piece_size())


def teach(random: Path, directory: Path, rounds: int = 400) -> Path:
    """Train the language model on `lessons`, and save it as openpi saves."""
    import optax  # type: ignore[import-untyped]
    import orbax.checkpoint as ocp
    from flax import nnx
    from openpi.models.model import Observation, preprocess_observation, restore_params
    from openpi.models.pi0_fast import make_attn_mask
    from openpi.shared.nnx_utils import PathRegex

    source = OpenpiJaxCheckpoint(str(random), NAME, dtype="float32")
    low, high = (np.array(STATS[key]) for key in ("q01", "q99"))
    made = []
    for sight, chunk in lessons():
        data = {
            **droid_observation(sight),
            "actions": (chunk + 1) / 2 * (high - low + 1e-6) + low,
        }
        for transform in source.transforms():
            data = transform(data)
        made.append(data)
    inputs = jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *made)
    del inputs["actions"]
    model = source.config.model.load(restore_params(random / "params", dtype=jnp.float32))
    taught = nnx.All(nnx.Param, PathRegex(".*llm.*"))
    parts: Any = nnx.split(model, taught, ...)
    graph, params, rest = parts
    adam = optax.adam(4e-3)

    @jax.jit
    def step(params: Any, state: Any, rest: Any) -> Any:
        def loss(params: Any) -> Any:
            own = nnx.merge(graph, params, rest)
            seen = Observation.from_dict(jax.tree.map(lambda each: each, inputs))
            seen = preprocess_observation(None, seen, image_keys=sorted(seen.images))
            tokens, valid, order = own.embed_inputs(seen)
            # openpi writes one place further to the right than it is trained at.
            places = jnp.cumsum(valid, 1) - 1 + (jnp.cumsum(order, 1) > 0)
            before, _, _ = own.PaliGemma.llm(
                embedded_prefix=tokens[:, :-1], mask=make_attn_mask(valid, order)[:, :-1, :-1],
                positions=places[:, :-1], return_prelogits=True,
            )  # fmt: skip
            wanted = seen.tokenized_prompt[:, 1:]
            logits, _ = own.PaliGemma.llm(pre_logits=before[:, -wanted.shape[1] :])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            return each.mean(where=seen.token_loss_mask[:, 1:])

        value, slope = jax.value_and_grad(loss)(params)
        change, state = adam.update(slope, state)
        return optax.apply_updates(params, change), state, value

    state = adam.init(params)
    for _ in range(rounds):
        params, state, value = step(params, state, rest)
        if value < KNOWN:
            break
    assert value < KNOWN, value
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            directory / "params", {"params": nnx.state(nnx.merge(graph, params, rest))}
        )
    (directory / "assets").symlink_to(random / "assets")
    return directory


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenpiJaxFastPolicy:
    found = load_openpi_jax(str(checkpoint), variant=NAME)
    assert isinstance(found, OpenpiJaxFastPolicy)
    return found


class TestContract(BlockingContract):
    """At most as many steps as the longer of two actions has, so that every step arrives."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, checkpoint: Path, policy: OpenpiJaxFastPolicy) -> Iterator[Case]:
        sights = tuple(sight for sight, _ in lessons())
        captured = run_captured(policy, policy.prepare(sights[:2]))
        longest = max(len(wrote.tokens) for wrote in captured.session.generated)
        with pytest.MonkeyPatch.context() as patch:
            steps_at_most(patch, longest)
            yield Case(load_openpi_jax(str(checkpoint), variant=NAME), sights[:2], seeded=False)


def test_tokens_and_actions_are_those_of_openpis_own_infer(
    checkpoint: Path, policy: OpenpiJaxFastPolicy
) -> None:
    """Observations through ``Policy.infer`` of an openpi policy without the adapter: the very tokens."""
    from openpi.policies.policy_config import create_trained_policy
    from openpi.training.config import get_config

    theirs = create_trained_policy(get_config(NAME), checkpoint)
    written: list[list[int]] = []
    sample = theirs._sample_actions

    def kept(*args: Any, **kwargs: Any) -> Any:
        found = sample(*args, **kwargs)
        written.append(np.asarray(found)[0].astype(int).tolist())
        return found

    theirs._sample_actions = kept
    sights = [sight for sight, _ in lessons()]
    wanted = [theirs.infer(droid_observation(sight))["actions"] for sight in sights]
    captured = run_captured(policy, policy.prepare(sights))
    low, high = (np.array(STATS[key]) for key in ("q01", "q99"))
    for row, wrote in enumerate(captured.session.generated):
        ids = [token.id for token in wrote.tokens]
        assert written[row][: len(ids)] == ids
        assert not any(written[row][len(ids) :])
        robot = (captured.actions[row] + 1) / 2 * (high - low + 1e-6) + low
        np.testing.assert_allclose(wanted[row], robot, atol=1e-5)
        text = "".join(token.text for token in wrote.tokens)
        np.testing.assert_allclose(
            captured.actions[row], lessons()[row][1], atol=0.08, err_msg=text
        )


def test_tokens_stand_for_the_spectrum_of_the_chunk(policy: OpenpiJaxFastPolicy) -> None:
    captured = run_captured(policy, policy.prepare([sight for sight, _ in lessons()]))
    ended = [len(wrote.tokens) for wrote in captured.session.generated]
    assert len(set(ended)) > 1, "lessons of one length cannot tell whose action has ended"
    for wrote, chunk in zip(captured.session.generated, captured.actions, strict=True):
        numbered = [coefficients is not None for coefficients in wrote.coefficients]
        first, last = numbered.index(True), len(numbered) - numbered[::-1].index(True)
        assert all(numbered[first:last])
        assert "".join(t.text for t in wrote.tokens[:first]) == "Action: "
        assert [t.text for t in wrote.tokens[last:]] == ["|", "</s>"]
        spectrum = np.zeros(HORIZON * DOF)
        for own in wrote.coefficients[first:last]:
            assert own is not None
            spectrum[own.first : own.first + len(own.values)] = own.values
        made = waves(HORIZON).T @ spectrum.reshape(HORIZON, DOF)
        np.testing.assert_allclose(chunk, made, atol=1e-6)
    part: dict[int, list[Any]] = {}

    def keep(record: Record) -> None:
        if record.step is not None and record.layer == 0:
            part[record.step] = list(record.samples or ())

    with capture(policy, keep):
        policy.act(captured.batch)
    assert part == {n: [i for i, e in enumerate(ended) if n < e] for n in range(max(ended))}


def test_what_openpi_reads_otherwise_has_no_numbers(policy: OpenpiJaxFastPolicy) -> None:
    """It reads the text up to a second ``Action: ``; and what is no whole action is a chunk of zeros."""
    words = policy._sequence.pieces
    opening, end = words.encode("Action: "), words.encode("|")
    tokenizer = policy._extract.tokenizer
    own = tokenizer._fast_tokenizer(chunks(1))[0]
    whole = tokenizer._act_tokens_to_paligemma_tokens(own).tolist()
    chunk, wrote = policy._decoded([*opening, *whole, *end, 1])
    np.testing.assert_allclose(chunk, chunks(1)[0], atol=0.08)
    numbered = [own is not None for own in wrote.coefficients]
    assert numbered == [False] * len(opening) + [True] * len(whole) + [False, False]
    twice = [*opening, *whole[:3], *opening, *whole[3:], *end, 1]
    for ids in (twice, [*opening, *whole[1:], *end, 1], [*whole, *end, 1]):
        chunk, wrote = policy._decoded(ids)
        assert chunk.shape == (HORIZON, DOF)
        assert [token.id for token in wrote.tokens] == ids
        assert wrote.coefficients == (None,) * len(ids)
        assert not chunk.any()


Params = Mapping[str, Any]


def gemma(params: Params, tokens: NDArray[Any], places: NDArray[Any], mask: NDArray[Any]) -> Any:
    """Gemma written out in NumPy: per layer the weights (head, query, key), the norms (head, key) of what keys
    add, and what leaves; and what leaves the final norm."""

    def normed(states: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
        size = np.sqrt((states**2).mean(-1, keepdims=True) + 1e-6)
        return np.asarray(states / size * (1 + scale))

    def turned(x: NDArray[Any]) -> NDArray[Any]:
        angle = places[:, None] / 10_000 ** (np.arange(FEATURES // 2) * 2 / FEATURES)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        one, two = np.split(x, 2, axis=-1)
        return np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)

    found, layers = [], params["layers"]
    for n in range(LAYERS):
        own = jax.tree.map(lambda each, n=n: np.asarray(each[n], np.float64), layers)
        attn, given = own["attn"], normed(tokens, own["pre_attention_norm"]["scale"])
        query = turned(np.einsum("td,hdf->thf", given, attn["q_einsum"]["w"])) * FEATURES**-0.5
        key, value = np.einsum("td,khdf->kthf", given, attn["kv_einsum"]["w"])
        scores = np.einsum("qhf,kf->hqk", query, turned(key)[:, 0])
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        adds = np.einsum("kf,hfd->hkd", value[:, 0], attn["attn_vec_einsum"]["w"])
        tokens = tokens + np.einsum("hqk,hkd->qd", weights, adds)
        given = normed(tokens, own["pre_ffw_norm"]["scale"])
        gate, up = np.einsum("td,gdm->gtm", given, own["mlp"]["gating_einsum"])
        gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        tokens = tokens + (gelu * up) @ own["mlp"]["linear"]
        found.append((weights, np.linalg.norm(adds, axis=-1), tokens))
    return found, normed(tokens, np.asarray(params["final_norm"]["scale"], np.float64))


@pytest.mark.parametrize("name", [NAME, LORA])
def test_all_is_that_of_one_pass_over_the_whole_sequence(checkpoint: Path, name: str) -> None:
    """Prompt and what was written in one pass by NumPy, in float32: its rows are the steps."""
    from flax import nnx
    from openpi.models.model import Observation, preprocess_observation

    # Adapters beside the weights round otherwise than within them.
    near = 2e-5 if name == NAME else 2e-4
    directory = checkpoint if name == NAME else save_jax_checkpoint(checkpoint.parent / name, name)
    policy = load_openpi_jax(str(directory), variant=name, dtype="float32")
    batch = policy.prepare([lessons()[0][0], lessons()[2][0]])
    shown: dict[tuple[str, int, int | None], Record] = {}
    states: dict[tuple[str, int, int | None], HiddenRecord] = {}
    with capture(
        policy,
        lambda record: shown.update({(record.phase, record.layer, record.step): record}),
        watch=Watch(values=True, hidden=HiddenChoice()),
        hidden=lambda record: states.update({(record.phase, record.layer, record.step): record}),
    ) as session:
        policy.act(batch)
    state = nnx.state(policy.model.PaliGemma.llm).to_pure_dict()
    params = merged(jax.tree.map(lambda own: np.asarray(own, np.float32), state))
    table = np.asarray(params["embedder"]["input_embedding"], np.float64)
    inputs = jax.tree.map(lambda each: jnp.asarray(each.numpy()), dict(batch.inputs))
    seen = Observation.from_dict(inputs)
    seen = preprocess_observation(None, seen, image_keys=sorted(seen.images))
    embedded, valid, _ = policy.model.embed_inputs(seen)
    for row, wrote in enumerate(session.generated):
        own = np.asarray(embedded[row], np.float64)[np.asarray(valid[row])]
        prompt, count = len(own), len(wrote.tokens)
        after = table[[token.id for token in wrote.tokens[:-1]]] * np.sqrt(WIDTH)
        order = np.arange(prompt + count - 1)
        mask = (order[:, None] >= order) | ((order < prompt)[:, None] & (order < prompt))
        # openpi leaves out the place behind the prompt
        places = order + (order >= prompt)
        layers, last = gemma(params, np.concatenate([own, after]), places, mask)
        layouts = batch.samples[row].layouts
        axis = model_indices(layouts["prefix"].key)
        assert len(axis) == prompt
        for layer, (weights, norms, left) in enumerate(layers):
            first = shown["prefix", layer, None]
            found = as_array(first.weights)[row][:, axis][:, :, axis]
            np.testing.assert_allclose(found, weights[:, :prompt, :prompt], atol=near)
            assert first.norms is not None
            np.testing.assert_allclose(
                as_array(first.norms)[row][:, axis], norms[:, :prompt], rtol=1e-3, atol=1e-4
            )
            found = as_array(states["prefix", layer, None].states)[row][axis]
            np.testing.assert_allclose(found, left[:prompt], rtol=1e-3, atol=1e-3)
            for step in range(count):
                record, at = shown["decode", layer, step], prompt - 1 + step
                keys = model_indices(at_step(layouts["decode"], step).key)
                assert record.weights.shape[2:] == (1, keys[-1] + 1)
                found = as_array(record.weights)[row][:, 0, keys]
                np.testing.assert_allclose(found, weights[:, at, : at + 1], atol=near)
                assert record.norms is not None
                np.testing.assert_allclose(
                    as_array(record.norms)[row][:, keys], norms[:, : at + 1], rtol=1e-3, atol=1e-4
                )
                found = as_array(states["decode", layer, step].states)[row]
                np.testing.assert_allclose(found, left[[at]], rtol=1e-3, atol=1e-3)
        for step in range(count):
            found = as_array(states["decode", LAST, step].states)[row, 0]
            np.testing.assert_allclose(found, last[prompt - 1 + step], rtol=1e-3, atol=1e-3)
            assert int((found @ table.T).argmax()) == wrote.tokens[step].id


def test_a_black_image_input_is_seen_and_no_camera_s(policy: OpenpiJaxFastPolicy) -> None:
    """openpi does not mask it for Pi0-FAST, so the others attend to it."""
    prefix = policy.prepare([lessons()[0][0]]).samples[0].layouts["prefix"].key
    sizes = [(span.name, span.kind, len(span)) for span in prefix.spans[:3]]
    assert sizes == [
        ("image:varied_camera_1", "image", 256), ("empty:base_1_rgb", "other", 256),
        ("image:hand_camera", "image", 256),
    ]  # fmt: skip
    spans = [span.name for span in prefix.spans[3:]]
    assert spans == [
        "bos", "task_label", "task", "state_label", *(f"state[{i}]" for i in range(8)), "state_end",
    ]  # fmt: skip
    last = prefix.spans[-1]
    assert last.model_start + len(last) == 3 * 256 + 100


def test_ingested_and_asked_from_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a lab types, on DROID episodes."""
    store, adapter = str(tmp_path / "s"), ("--policy", f"openpi-jax:{NAME}")
    few = ("--limit", "1", "--stride", "16")

    def attnstore_says(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as done:
            main([str(each) for each in arguments])
        said = capsys.readouterr()
        assert not done.value.code, said.err
        return said.out

    said = attnstore_says("doctor", str(checkpoint), sample_path(), *adapter, *few)
    assert said.endswith("nothing was found that would fail\n")
    attnstore_says(
        "ingest", "droid", store, sample_path(), *adapter, "--checkpoint", checkpoint, *few
    )
    assert attnstore_says("verify", store)
    attnstore_says("render", "images", store, "--out", str(tmp_path / "pictures"))
    assert list((tmp_path / "pictures").rglob("*.*"))
    with attnstore.open(store) as opened:
        ((name,),) = opened.sql("select name from episodes").fetchall()
        written = opened.sql(
            "select text from tokens where axis = 'step' and keyframe = 0 order by index"
        ).fetchall()
        weights = opened.episode(name).attention("decode", layer=LAYERS - 1, keyframe=0)
    own = weights.sum("key").values[: len(written)]
    assert len(written) > 1
    assert own.shape == (len(written), HEADS, 1)
    np.testing.assert_allclose(own, 1, atol=4e-3)


def test_messages(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openpi.models.tokenizer import BinningTokenizer
    from openpi.training import config as configs

    directory = str(checkpoint)
    with pytest.raises(UsageError, match=r"openpi-jax with Pi0-FAST has the options .*got 'steps'"):
        load_openpi_jax(directory, variant=NAME, options={"steps": "5"})
    config = configs.get_config(NAME)
    other = replace(config.model, fast_model_tokenizer=BinningTokenizer)
    monkeypatch.setitem(
        configs._CONFIGS_DICT, "binning", replace(config, name="binning", model=other)
    )
    with pytest.raises(UsageError, match="writes its actions by BinningTokenizer"):
        load_openpi_jax(directory, variant="binning")
    ours = load_openpi_jax(directory, variant=NAME)
    inputs = ours._sight.inputs(lessons()[0][0])
    inputs["image_mask"]["base_1_rgb"] = np.False_
    with pytest.raises(
        PolicyError, match="base_1_rgb is masked, and openpi's Pi0-FAST writes over"
    ):
        ours._sequence.sample(inputs, ours._sight.slots(lessons()[0][0]))
