"""Which languages a model speaks, and the names clients use for them."""

from __future__ import annotations

from parakeet_api.errors import UnsupportedLanguageError

ENGLISH_NAMES = {
    "bg": "bulgarian",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "fi": "finnish",
    "fr": "french",
    "hr": "croatian",
    "hu": "hungarian",
    "it": "italian",
    "lt": "lithuanian",
    "lv": "latvian",
    "mt": "maltese",
    "nl": "dutch",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sk": "slovak",
    "sl": "slovenian",
    "sv": "swedish",
    "uk": "ukrainian",
}
"""ISO 639-1 code -> English name, as OpenAI writes it: the 25 languages of parakeet-tdt-0.6b-v3."""

_CODES = {name: code for code, name in ENGLISH_NAMES.items()} | {"eng": "en"}


def english_name(code: str) -> str:
    """Give a language's English name, lower case; the code itself where it has none here."""
    return ENGLISH_NAMES.get(code, code)


def languages_of(model_name: str) -> frozenset[str]:
    """Tell which languages a checkpoint speaks, by its name: v3 all 25, others English."""
    return frozenset(ENGLISH_NAMES) if "-v3" in model_name.lower() else frozenset({"en"})


def normalize_language(text: str, *, supported: frozenset[str]) -> str:
    """Turn `en`, `en-US`, `EN_us` or `English` into `en`.

    Raises `UnsupportedLanguageError` for what the model does not speak: the transcript would be
    wrong without a sign of it.
    """
    wanted = text.strip().lower().replace("_", "-")
    code = _CODES.get(wanted, wanted.partition("-")[0])
    code = _CODES.get(code, code)
    if code not in supported:
        spoken = ", ".join(sorted(supported))
        raise UnsupportedLanguageError(
            f"Language {text[:40]!r} is not supported by the loaded model; it speaks: {spoken}."
            " Leave the parameter out if you are not sure.",
            param="language",
        )
    return code
