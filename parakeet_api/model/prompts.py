"""Language prompts: an index for each row of a batch, for models that are given the language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parakeet_api.languages import language_code

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_AUTO = "auto"
"""The prompt that leaves the language to the model."""


def prompt_languages(prompts: Mapping[str, int]) -> dict[str, int]:
    """Map ISO 639-1 codes to prompts; of several regions, the first one listed."""
    by_code: dict[str, int] = {}
    for name, index in prompts.items():
        code = None if name == _AUTO else language_code(name)
        if code is not None and (code not in by_code or name == code):
            by_code[code] = index
    return by_code


class LanguagePrompts:
    """Condition an encoder's output on languages, as NeMo's models with a prompt do."""

    def __init__(self, network: Any) -> None:
        """Wrap NeMo's network, whose `prompt_kernel` has two layers."""
        prompts: Mapping[str, int] = network.cfg.model_defaults.prompt_dictionary
        self._kernel = network.prompt_kernel
        self._by_language = prompt_languages(prompts)
        # A model without `auto` was always given the language in training.
        self._auto = prompts.get(_AUTO, next(iter(prompts.values()), 0))

    def index(self, language: str | None) -> int:
        """Return the prompt of an ISO 639-1 code; without one, that of `auto`."""
        return self._by_language.get(language or "", self._auto)

    def apply(self, encoded: Tensor, languages: Sequence[str | None]) -> Tensor:
        """Condition encoder output, fp32 of shape (B, D, T), on each row's language.

        NeMo appends a one-hot vector to every frame. Here the prompt's column of the first layer's
        weights is added to that layer's output, which is equivalent.
        """
        import torch
        from torch.nn import functional

        first, activation, second = self._kernel
        width = encoded.shape[1]
        chosen = torch.tensor(
            [self.index(language) for language in languages], device=encoded.device
        )
        of_prompts = first.weight[:, width:].T[chosen]
        of_frames = functional.linear(encoded.transpose(1, 2), first.weight[:, :width], first.bias)
        conditioned: Tensor = second(activation(of_frames + of_prompts[:, None]))
        return conditioned.transpose(1, 2)
