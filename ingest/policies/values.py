"""Value norms: what a key token would add through each head, ‖v_k W_O^h‖, beside the weights.

A weight says how much of a token's value vector is taken, not how much there is of it: a sink with a
tiny value takes weight and carries nothing. With the matrix W_O^h that a head's part of the output
projection is, the head adds Σ_k A_qk v_k W_O^h to a query's hidden state, so a token adds A_qk times
this norm at most (Kobayashi et al. 2020, "Attention is Not Only a Weight", arXiv 2004.10102).

It is √(v G vᵀ) with the Gram matrix G_h = W_O^h W_O^hᵀ, which is as small as a head is wide and is
computed once for each layer: nothing of the hidden states' width is multiplied for a token.

Where several query heads share a key-value head (grouped queries), they share v and differ in W_O^h.
The output projection's bias belongs to no token. A norm after the projection (Gemma 2 and 3) works on
the sum over tokens and heads, and is left out: the norm is that before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import HealthError, UsageError

from .checkpoint import unwrap

if TYPE_CHECKING:
    import torch

LEAVE_OUT = "leave value norms out: --no-values"
MIXING_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 4e-2}
"""How far weights times values may be from what the layer projects, of its largest entry: products
are rounded to the data type."""


@dataclass(frozen=True, slots=True)
class Projections:
    """The two modules of an attention layer that make value vectors, and take what is mixed of them."""

    value: torch.nn.Module | None = field(repr=False)
    """Its output is (batch, token, key_head * feature), or with the last two apart. None where no module
    makes them: they come by `SeenValues.ran`."""
    output: torch.nn.Module = field(repr=False)
    """A linear layer over (batch, query, head * feature)."""


def projections(module: Any) -> Projections | None:
    """Find an attention module's projections by the names that transformers gives them.

    Returns
    -------
    None where there are none, or where its ``weight`` is not what it multiplies with: quantised, or a
    base that adapters add to.
    """
    value = unwrap(getattr(module, "v_proj", None))
    output = unwrap(getattr(module, "o_proj", None) or getattr(module, "out_proj", None))
    if value is None or not plain_linear(output):
        return None
    # Gemma 3n norms values after their projection.
    return Projections(unwrap(getattr(module, "v_norm", None)) or value, output)


def no_projections(module: Any, where: str) -> UsageError:
    """Return the error that says that a module's values cannot be read."""
    return UsageError(
        f"value norms need modules v_proj and o_proj whose weights are plain numbers: {where}, a "
        f"{type(module).__name__}, has others (fused, quantised or with adapters not merged); "
        f"{LEAVE_OUT}"
    )


def plain_linear(module: Any) -> bool:
    """Whether a module multiplies with its ``weight`` and nothing else."""
    import torch

    weight = getattr(module, "weight", None)
    return (
        isinstance(module, torch.nn.Linear)
        and not hasattr(module, "base_layer")
        and weight is not None
        and weight.is_floating_point()
        and weight.ndim == 2
    )


class ValueNorms:
    """Computes norms, and keeps each output projection's Gram matrices while its weights stay."""

    def __init__(self) -> None:
        self._grams: dict[int, tuple[Any, int, torch.Tensor]] = {}

    def of(self, values: torch.Tensor, output: torch.nn.Module, heads: int) -> torch.Tensor:
        """Compute the norm of every key token through every head.

        Parameters
        ----------
        values
            (batch, key, key_head, feature).
        output
            The output projection, over head * feature.
        heads
            Query heads; a multiple of the key heads, whose neighbours share one.

        Returns
        -------
        (batch, head, key) float32, in the units of the hidden states.

        Raises
        ------
        HealthError
            If the projection takes another number of heads or features.
        """
        import torch

        batch, keys, shared, features = values.shape
        weight: Any = output.weight
        if weight.shape[1] != heads * features or heads % shared:
            raise HealthError(
                f"value norms: {heads} heads of {features} features share {shared} key heads, the "
                f"output projection takes {weight.shape[1]}; {LEAVE_OUT}"
            )
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            gram = self._gram(weight, heads, features)
            wide = values.to(torch.float32).permute(2, 0, 1, 3).reshape(shared, -1, features)
            own = gram.view(shared, heads // shared, features, features)
            product = torch.matmul(wide.unsqueeze(1), own)
            squares: torch.Tensor = (product * wide.unsqueeze(1)).sum(
                -1
            )  # (shared, heads / shared, batch * key)
            # Of a value that a head nearly ignores, rounding may leave less than nothing.
            norms = squares.clamp(min=0).sqrt().reshape(heads, batch, keys)
        return norms.transpose(0, 1)

    def _gram(self, weight: Any, heads: int, features: int) -> torch.Tensor:
        import torch

        known = self._grams.get(id(weight))
        if known is not None and known[0] is weight and known[1] == weight._version:
            return known[2]
        own = weight.detach().to(torch.float32).reshape(-1, heads, features).permute(1, 2, 0)
        gram: torch.Tensor = own @ own.transpose(1, 2)
        self._grams[id(weight)] = (weight, weight._version, gram)
        return gram


class LayerValues(ABC):
    """The values over one watched module's keys, and their norms, pass after pass."""

    def __init__(self, norms: ValueNorms) -> None:
        self._norms = norms

    @abstractmethod
    def hooks(self) -> list[Callable[[], None]]:
        """Hook what makes values; each result removes one."""

    @abstractmethod
    def take(self, weights: torch.Tensor, where: str) -> torch.Tensor:
        """Return the norms of the pass that has just run.

        Parameters
        ----------
        weights
            (batch, head, query, key).
        where
            For messages.

        Returns
        -------
        (batch, head, key) float32.

        Raises
        ------
        HealthError
            If values are missing, or are not those that the layer mixes.
        """


class SeenValues(LayerValues):
    """Values that a module makes, and what its layer's output projection takes up of them.

    Parameters
    ----------
    norms
        Computes them.
    source
        The module whose output holds the values; None where they come by `ran`.
    output
        The output projection.
    """

    def __init__(self, norms: ValueNorms, source: Any, output: Any) -> None:
        super().__init__(norms)
        self._source, self._output = source, output
        self._made: torch.Tensor | None = None
        self._mixed: torch.Tensor | None = None

    def hooks(self) -> list[Callable[[], None]]:
        """See `LayerValues.hooks`."""
        return [
            self._source.register_forward_hook(self._makes).remove,
            self._output.register_forward_pre_hook(self._takes).remove,
        ]

    def ran(self, values: torch.Tensor, mixed: torch.Tensor) -> None:
        """Take what hooks would have seen of a pass.

        Parameters
        ----------
        values
            Of its own tokens, (batch, token, key_head, feature), as `source` makes them.
        mixed
            What its last query takes of the values, (batch, head * feature).
        """
        self._made, self._mixed = values, mixed

    def seen(self, where: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what was made, and what the last query took of it; each pass is seen once.

        Raises
        ------
        HealthError
            If nothing was.
        """
        made, mixed = self._made, self._mixed
        self._made = self._mixed = None
        if made is None or mixed is None:
            raise HealthError(f"{where}: no value vectors were seen; {LEAVE_OUT}")
        return made, mixed

    def _makes(self, module: Any, args: Any, output: Any) -> None:
        self._made = output.detach()

    def _takes(self, module: Any, args: Any) -> None:
        # Of the last query: enough to see that these are the values that the layer mixes.
        self._mixed = args[0].detach()[:, -1].clone()


class ProjectedValues(SeenValues):
    """Values that a module ``v_proj`` makes of a pass' own tokens.

    Keys that were there before are those of the passes that it continues: a suffix of its prefix,
    decoded tokens of the prompt and of one another.

    Parameters
    ----------
    norms
        Computes them.
    found
        The module's projections.
    before
        The same layer of the phase that this one follows; None if it follows its own passes.
    """

    def __init__(
        self, norms: ValueNorms, found: Projections, before: ProjectedValues | None = None
    ) -> None:
        super().__init__(norms, found.value, found.output)
        self._before = before
        self.values: torch.Tensor | None = None
        """(batch, key, key_head, feature) of the last pass."""
        self._through: tuple[torch.Tensor, torch.Tensor] | None = None

    def take(self, weights: torch.Tensor, where: str) -> torch.Tensor:
        """See `LayerValues.take`."""
        import torch

        new, mixed = self.seen(where)
        heads, keys = int(weights.shape[1]), int(weights.shape[-1])
        features = int(mixed.shape[-1]) // heads
        new = new.reshape(len(new), new.shape[1], -1, features)
        norms = self._norms.of(new, self._output, heads)
        if missing := keys - new.shape[1]:
            earlier, through = self._earlier(missing, len(new), heads, where)
            new, norms = torch.cat([earlier, new], 1), torch.cat([through, norms], 2)
        self.values = new
        if self._before is None:
            self._through = (new, norms)
        check_mixing(mixed_last(weights, new), mixed, where)
        return norms

    def _earlier(
        self, count: int, batch: int, heads: int, where: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the keys before a pass, and their norms through this layer's projection."""
        source = self.values if self._before is None else self._before.values
        if source is None or source.shape[:2] != (batch, count):
            found = 0 if source is None else source.shape[1]
            raise HealthError(
                f"{where}: {count} keys are older than this pass, the values of {found} were seen; "
                f"{LEAVE_OUT}"
            )
        if self._through is None or self._through[0] is not source:
            # Not at every denoising step again.
            self._through = (source, self._norms.of(source, self._output, heads))
        return self._through


class FusedValues(SeenValues):
    """Values that one module makes behind queries and keys, of a pass' own tokens.

    Parameters
    ----------
    norms, source, output
        See `SeenValues`.
    width
        How many of the last features are values.
    """

    def __init__(self, norms: ValueNorms, source: Any, width: int, output: Any) -> None:
        super().__init__(norms, source, output)
        self._width = width

    def take(self, weights: torch.Tensor, where: str) -> torch.Tensor:
        """See `LayerValues.take`."""
        made, mixed = self.seen(where)
        heads = int(weights.shape[1])
        values = made[..., -self._width :]
        values = values.reshape(*values.shape[:2], -1, int(mixed.shape[-1]) // heads)
        check_mixing(mixed_last(weights, values), mixed, where)
        return self._norms.of(values, self._output, heads)


class MultiheadValues(LayerValues):
    """Values of an ``nn.MultiheadAttention``, which has one matrix for queries, keys and values.

    Parameters
    ----------
    module
        With queries, keys and values as wide as each other.
    """

    def __init__(self, norms: ValueNorms, module: Any) -> None:
        super().__init__(norms)
        self._module = module
        self._given: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def hooks(self) -> list[Callable[[], None]]:
        """See `LayerValues.hooks`."""
        return [self._module.register_forward_hook(self._ran, with_kwargs=True).remove]

    def _ran(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[2] if len(args) > 2 else kwargs["value"]
        last = output[0][:, -1] if module.batch_first else output[0][-1]
        self._given = given.detach() if module.batch_first else given.detach().transpose(0, 1)
        self._output = last.detach()

    def take(self, weights: torch.Tensor, where: str) -> torch.Tensor:
        """See `LayerValues.take`."""
        import torch

        given, output, module = self._given, self._output, self._module
        self._given = self._output = None
        if given is None or output is None or module.in_proj_weight is None:
            raise HealthError(f"{where}: no value vectors were seen; {LEAVE_OUT}")
        heads = int(weights.shape[1])
        linear = torch.nn.functional.linear
        with torch.no_grad():
            weight, bias = module.in_proj_weight.chunk(3)[2], module.in_proj_bias
            made = linear(given, weight, None if bias is None else bias.chunk(3)[2])
            values = made.reshape(*made.shape[:2], heads, -1)
            norms = self._norms.of(values, module.out_proj, heads)
            mixed = mixed_last(weights, values).to(given.dtype)
            check_mixing(linear(mixed, module.out_proj.weight, module.out_proj.bias), output, where)
        return norms


def mixed_last(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mix values for the last query.

    Parameters
    ----------
    weights
        (batch, head, query, key).
    values
        (batch, key, key_head, feature).

    Returns
    -------
    (batch, head * feature) float32.
    """
    import torch

    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        last = weights[:, :, -1].float()
        last = last.reshape(len(last), values.shape[2], -1, last.shape[-1])
        mixed: torch.Tensor = torch.einsum("bsrk,bksf->bsrf", last, values.float())
    return mixed.reshape(len(mixed), -1)


def check_mixing(ours: torch.Tensor, theirs: torch.Tensor, where: str) -> None:
    """Check that a layer mixes the values that were seen.

    Parameters
    ----------
    ours
        What weights times values give for the last query.
    theirs
        What the layer made of it.

    Raises
    ------
    HealthError
        If they differ: values cached in another order, gated or normed in between.
    """
    if (off := mixing_error(ours, theirs)) is not None:
        raise HealthError(
            f"{where}: the layer makes something else of its weights than their product with the "
            f"values (off by {off:.2g} of the largest entry), so value norms would be wrong; "
            f"{LEAVE_OUT}"
        )


def mixing_error(ours: torch.Tensor, theirs: torch.Tensor) -> float | None:
    """How far weights times values are from what a layer made of them, of its largest entry.

    Returns
    -------
    None if that is rounding, or if what is mixed is not finite, which the rows' own check names.
    """
    if not ours.isfinite().all():
        return None
    largest = theirs.float().abs().amax().clamp(min=1e-12)
    off = float((ours.float() - theirs.float()).abs().amax() / largest)
    dtype = str(theirs.dtype).removeprefix("torch.")
    return None if off <= MIXING_TOLERANCE.get(dtype, 4e-2) else off
