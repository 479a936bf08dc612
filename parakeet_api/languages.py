"""The languages of a model, and the names that clients use for languages."""

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
the language's own name, codes of ISO 639-2 and 639-3, and openai/whisper's other names for it.

A table, because no library has all of it: langcodes has no names without a data package,
python-iso639 does not know `greek`, and Babel takes 33 MB.
"""

ENGLISH_NAMES = {code: names[0] for code, names in _NAMES.items()}
"""ISO 639-1 code -> English name, lower case: the 25 languages of parakeet-tdt-0.6b-v3."""

_MORE_NAMES: dict[str, tuple[str, ...]] = {
    "ar": ("arabic", "العربية"),
    "ca": ("catalan", "català"),
    "fa": ("persian", "فارسی"),
    "he": ("hebrew", "עברית"),
    "hi": ("hindi", "हिन्दी"),
    "id": ("indonesian", "bahasa indonesia"),
    "ja": ("japanese", "日本語"),
    "ka": ("georgian", "ქართული"),
    "ko": ("korean", "한국어"),
    "nb": ("norwegian bokmål", "bokmål"),
    "nn": ("norwegian nynorsk", "nynorsk"),
    "no": ("norwegian", "norsk"),
    "th": ("thai", "ไทย"),
    "tr": ("turkish", "türkçe"),
    "vi": ("vietnamese", "tiếng việt"),
    "zh": ("chinese", "中文", "mandarin"),
}
"""Of other models in the family: English name as OpenAI writes it, and the language's own."""

_ALL_NAMES = _NAMES | _MORE_NAMES
KNOWN_LANGUAGES = frozenset(_ALL_NAMES)
"""ISO 639-1 codes of the languages of NVIDIA's models."""
_CODE = 2
"""Letters of an ISO 639-1 code."""

_ISO_639: dict[str, str] = dict(
    entry.split("=")
    for entry in """
    aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara as=asm av=ava ay=aym az=aze ba=bak
    be=bel bg=bul bi=bis bm=bam bn=ben bo=bod,tib br=bre bs=bos ca=cat ce=che ch=cha co=cos
    cr=cre cs=ces,cze cu=chu cv=chv cy=cym,wel da=dan de=deu,ger dv=div dz=dzo ee=ewe el=ell,gre
    en=eng eo=epo es=spa et=est eu=baq,eus fa=fas,per ff=ful fi=fin fj=fij fo=fao fr=fra,fre
    fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo hr=hrv ht=hat
    hu=hun hy=arm,hye hz=her ia=ina id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=ice,isl it=ita
    iu=iku ja=jpn jv=jav ka=geo,kat kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor
    kr=kau ks=kas ku=kur kv=kom kw=cor ky=kir la=lat lb=ltz lg=lug li=lim ln=lin lo=lao lt=lit
    lu=lub lv=lav mg=mlg mh=mah mi=mao,mri mk=mac,mkd ml=mal mn=mon mr=mar ms=may,msa mt=mlt
    my=bur,mya na=nau nb=nob nd=nde ne=nep ng=ndo nl=dut,nld nn=nno no=nor nr=nbl nv=nav ny=nya
    oc=oci oj=oji om=orm or=ori os=oss pa=pan pi=pli pl=pol ps=pus pt=por qu=que rm=roh rn=run
    ro=ron,rum ru=rus rw=kin sa=san sc=srd sd=snd se=sme sg=sag si=sin sk=slk,slo sl=slv sm=smo
    sn=sna so=som sq=alb,sqi sr=srp ss=ssw st=sot su=sun sv=swe sw=swa ta=tam te=tel tg=tgk
    th=tha ti=tir tk=tuk tl=tgl tn=tsn to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr
    ur=urd uz=uzb ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yi=yid yo=yor za=zha zh=chi,zho
    zu=zul
    """.split()  # noqa: SIM905 - 183 strings in quotes would be 183 lines
)
"""ISO 639-1 code -> codes of ISO 639-2 and 639-3, for all languages: a fine-tuned model may support
any of them."""

_DIALECTS = {
    "arb": "ar",
    "bar": "de",
    "cmn": "zh",
    "ekk": "et",
    "gsw": "de",
    "iw": "he",
    "lvs": "lv",
    "mo": "ro",
    "mol": "ro",
    "nob": "nb",
    "pb": "pt",
    "pes": "fa",
    "pob": "pt",
    "scr": "hr",
    "swg": "de",
    "swiss german": "de",
    "vls": "nl",
}
"""Dialects -> their written language; deprecated codes and those of subtitle sites, which players
and Bazarr send."""

_CODES = (
    {name: code for code, names in _ALL_NAMES.items() for name in names}
    | {three: code for code, codes in _ISO_639.items() for three in codes.split(",")}
    | _DIALECTS
)

_UNSPECIFIED = frozenset(
    {
        "",
        "auto",
        "auto-detect",
        "autodetect",
        "detect",
        "mul",
        "multi",
        "und",
        "undetermined",
        "unknown",
    }
)
"""Values that mean that the language is unknown."""


def english_name(code: str) -> str:
    """Return a language's English name in lower case; the code itself if it is not in the table."""
    return _ALL_NAMES[code][0] if code in _ALL_NAMES else code


def languages_of(
    model_name: str, configured: Iterable[str] = (), stated: Iterable[str] = ()
) -> frozenset[str]:
    """Return the languages of a checkpoint: the configured codes, else those that it states.

    If it states none, its name decides: a language in it, such as `-ja` or `german`, then `v3`,
    which means all 25. Other names mean English.
    """
    named_v3 = re.search(r"(?<![a-z0-9])v3(?![0-9])", model_name.lower())
    return (
        frozenset(configured)
        or frozenset(stated)
        or _named_in(model_name)
        or frozenset(ENGLISH_NAMES if named_v3 else {"en"})
    )


def _named_in(model_name: str) -> frozenset[str]:
    """Find languages in a model's name; not every two letters in one are a code."""
    parts = re.findall(r"[a-z]+", model_name.lower())
    codes = (_CODES.get(part) if len(part) > _CODE else part for part in parts)
    return frozenset(code for code in codes if code in _ALL_NAMES)


def language_code(text: str) -> str | None:
    """Convert `en`, `en-US`, `EN_us`, `eng` or `English` to `en`; `None` if it is no language.

    Names are supported for the languages of NVIDIA's models, codes of two and three letters for
    all.
    """
    # macOS sends `ç` as two characters.
    normalized = unicodedata.normalize("NFC", text).strip().casefold().replace("_", "-")
    primary = normalized.partition("-")[0]
    code = _CODES.get(primary, primary)
    return code if code in _ISO_639 else None


def normalize_language(text: str, *, supported: frozenset[str]) -> str | None:
    """Convert a client's language parameter to an ISO 639-1 code; `None` = not specified.

    `auto`, `und` and the empty string mean not specified. Raises `UnsupportedLanguageError` for a
    language that the model does not support: the client would not notice the wrong transcript.
    """
    if text.strip().lower() in _UNSPECIFIED:
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
