"""A policy whose weights transformers loads: what its adapters do alike."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from .checkpoint import load_weights, unwrap
from .fingerprint import digest_directory, digest_parameters
from .hooks import HookedPolicy


class PretrainedPolicy(HookedPolicy):
    """A checkpoint directory, or a model that was given in memory; weights are loaded when needed."""

    name: str
    model_class: ClassVar[str]
    """Name of transformers' class."""
    checkpoint: str
    device: str
    config: Any
    _directory: str
    """Absent for a model in memory."""
    _requested_dtype: str | None

    @cached_property
    def model(self) -> Any:
        """The model, loaded at the first use, in evaluation mode."""
        model = load_weights(
            self.name, self.model_class, self.checkpoint, self._directory, self._requested_dtype
        )
        return model.to(self.device).eval()

    @property
    def dtype(self) -> str:
        """Data type of the weights: as asked, else the checkpoint's."""
        if self._requested_dtype is None and "model" in self.__dict__:
            return str(next(unwrap(self.model).parameters()).dtype).removeprefix("torch.")
        return self._requested_dtype or str(self.config.dtype or "float32").removeprefix("torch.")

    @property
    def in_memory(self) -> bool:
        """Whether the model was given and not loaded from a directory."""
        return not hasattr(self, "_directory")

    def weights_digest(self) -> str:
        """SHA-256 of the directory, or of the weights of a model in memory."""
        if self.in_memory:
            return digest_parameters(unwrap(self.model))
        return digest_directory(Path(self._directory))
