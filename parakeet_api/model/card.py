"""Read a model card: the README of a model's repository, stored beside its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.languages import language_code

_MAX_BYTES = 100_000
_FENCE = "---"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The fields of a card's header that the service uses."""

    languages: frozenset[str] = frozenset()
    """ISO 639-1 codes; empty = not stated."""
    license: str | None = None


def card_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's card: beside it, named like it, or in the hub's cache."""
    if checkpoint.parent.parent.name == "snapshots":
        return checkpoint.parent / "README.md"
    return checkpoint.with_suffix(".md")


def read_card(checkpoint: Path) -> ModelCard:
    """Read a checkpoint's card; a missing or damaged card gives an empty `ModelCard`."""
    import yaml  # type: ignore[import-untyped]

    try:
        with card_path(checkpoint).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_BYTES)
    except (OSError, ValueError):
        return ModelCard()
    opening, _, rest = text.partition("\n")
    header, fence, _ = rest.partition(f"\n{_FENCE}")
    if opening.strip() != _FENCE or not fence:
        return ModelCard()
    try:
        fields = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ModelCard()
    return _card(fields) if isinstance(fields, dict) else ModelCard()


def _card(fields: dict[Any, Any]) -> ModelCard:
    declared = fields.get("language")
    names = declared if isinstance(declared, list) else [declared]
    # YAML reads Norwegian, `no`, as false.
    codes = [language_code("no" if name is False else str(name)) for name in names]
    license_name = fields.get("license")
    return ModelCard(
        frozenset(code for code in codes if code is not None),
        license_name if isinstance(license_name, str) else None,
    )
