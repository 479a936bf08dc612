"""Which languages a model speaks, and the names clients use for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from parakeet_api.errors import UnsupportedLanguageError

_NAMES: dict[str, tuple[str, ...]] = {
    "bg": ("bulgarian", "български", "bul"),
    "cs": ("czech", "čeština", "ces", "cze"),
    "da": ("danish", "dansk", "dan"),
    "de": ("german", "deutsch", "deu", "ger"),
    "el": ("greek", "ελληνικά", "ell", "gre"),
    "en": ("english", "eng"),
    "es": ("spanish", "español", "spa", "castilian"),
    "et": ("estonian", "eesti", "est", "ekk"),
    "fi": ("finnish", "suomi", "fin"),
    "fr": ("french", "français", "fra", "fre"),
    "hr": ("croatian", "hrvatski", "hrv"),
    "hu": ("hungarian", "magyar", "hun"),
    "it": ("italian", "italiano", "ita"),
    "lt": ("lithuanian", "lietuvių", "lit"),
    "lv": ("latvian", "latviešu", "lav", "lvs"),
    "mt": ("maltese", "malti", "mlt"),
    "nl": ("dutch", "nederlands", "nld", "dut", "flemish"),
    "pl": ("polish", "polski", "pol"),
    "pt": ("portuguese", "português", "por"),
    "ro": ("romanian", "română", "ron", "rum", "moldavian", "moldovan"),
    "ru": ("russian", "русский", "rus"),
    "sk": ("slovak", "slovenčina", "slk", "slo"),
    "sl": ("slovenian", "slovenščina", "slv", "slovene"),
    "sv": ("swedish", "svenska", "swe"),
    "uk": ("ukrainian", "українська", "ukr"),
}
"""The 25 languages of parakeet-tdt-0.6b-v3: ISO 639-1 code -> English name as OpenAI writes it,
the language's own name, codes of ISO 639-2 and 639-3, and what else openai/whisper calls it.

A table, because no library has all of it: langcodes knows no names by itself, python-iso639 does
not know `greek`, and Babel brings 33 MB.
"""

ENGLISH_NAMES = {code: names[0] for code, names in _NAMES.items()}
"""ISO 639-1 code -> English name, lower case: the 25 languages of parakeet-tdt-0.6b-v3."""

_CODES = {name: code for code, names in _NAMES.items() for name in names}

_ISO_639_1 = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de
    dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia
    id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo
    lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl
    ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk
    tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()  # noqa: SIM905 - 183 strings in quotes would be 183 lines
)
"""All codes of the standard: a fine-tuned model may speak any language."""

_NOT_SAID = frozenset({"", "auto"})


def english_name(code: str) -> str:
    """Give a language's English name, lower case; the code itself where it has none here."""
    return ENGLISH_NAMES.get(code, code)


def languages_of(model_name: str, configured: Iterable[str] = ()) -> frozenset[str]:
    """Tell which languages a checkpoint speaks: the configured codes, else those of its name.

    By name, v3 speaks all 25 and the others English.
    """
    named_v3 = re.search(r"(?<![a-z0-9])v3(?![0-9])", model_name.lower())
    return frozenset(configured) or frozenset(ENGLISH_NAMES if named_v3 else {"en"})


def language_code(text: str) -> str | None:
    """Read `en`, `en-US`, `EN_us`, `eng` or `English` as `en`; `None` if it is no language.

    Names and codes of three letters are known of the 25 languages of v3, codes of two letters of
    all.
    """
    # macOS sends `ç` as two characters.
    wanted = unicodedata.normalize("NFC", text).strip().casefold().replace("_", "-")
    primary = wanted.partition("-")[0]
    code = _CODES.get(primary, primary)
    return code if code in _ISO_639_1 else None


def normalize_language(text: str, *, supported: frozenset[str]) -> str | None:
    """Turn what a client calls a language into its ISO 639-1 code; `None` = not said.

    `auto` and the empty text say nothing. Raises `UnsupportedLanguageError` for what the model
    does not speak: the transcript would be wrong without a sign of it.
    """
    if text.strip().lower() in _NOT_SAID:
        return None
    code = language_code(text)
    if code is None or code not in supported:
        spoken = ", ".join(sorted(supported))
        raise UnsupportedLanguageError(
            f"Language {text[:40]!r} is not supported by the loaded model; it speaks: {spoken}."
            " Leave the parameter out if you are not sure.",
            param="language",
        )
    return code
