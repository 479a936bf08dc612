"""The prompt of a model that is told the language: an index for each row of a batch."""

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
    """Return the prompt of each language, ISO 639-1; of its regions' the first that is listed."""
    by_code: dict[str, int] = {}
    for name, index in prompts.items():
        code = None if name == _AUTO else language_code(name)
        if code is not None and (code not in by_code or name == code):
            by_code[code] = index
    return by_code


class LanguagePrompts:
    """Condition an encoder's output on languages, as NeMo's models with a prompt do."""

    def __init__(self, network: Any) -> None:
        """Take over NeMo's network, whose `prompt_kernel` is two layers."""
        prompts: Mapping[str, int] = network.cfg.model_defaults.prompt_dictionary
        self._kernel = network.prompt_kernel
        self._by_language = prompt_languages(prompts)
        # A model without it was trained on languages that it was always told.
        self._auto = prompts.get(_AUTO, next(iter(prompts.values()), 0))

    def index(self, language: str | None) -> int:
        """Return the prompt of a language, ISO 639-1; of one that it does not have, `auto`'s."""
        return self._by_language.get(language or "", self._auto)

    def apply(self, encoded: Tensor, languages: Sequence[str | None]) -> Tensor:
        """Condition encoder output, fp32 of shape (B, D, T), on each row's language.

        The first layer's weights for a prompt are a column: it is added to what the layer makes of
        the frames, where NeMo appends a one-hot vector to every frame.
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
