"""Build keyword trees in a model's pieces, and cache them by list."""

from __future__ import annotations

import logging
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from parakeet_api.errors import InvalidRequestError, SettingsError
from parakeet_api.keywords import (
    Keyword,
    KeywordTree,
    Spell,
    build_tree,
    is_spelled,
    parse_keywords,
)

logger = logging.getLogger(__name__)

_KEPT = 64
"""Cached trees; one of 500 phrases takes half a megabyte."""
_TOKENIZER_SUFFIX = "tokenizer.model"
"""The end of the name of a checkpoint's SentencePiece model."""


class KeywordTrees:
    """A thread-safe cache of keyword trees; works without a loaded model.

    So a tree is built in the thread of its request, while the model runs other requests.
    """

    def __init__(self, checkpoint: Callable[[], Path], *, always: Sequence[Keyword] = ()) -> None:
        """Use the pieces of a checkpoint; the phrases in `always` are added to every request."""
        self._checkpoint = checkpoint
        self._always = tuple(always)
        self._lock = threading.Lock()
        self._trees: OrderedDict[tuple[Path, tuple[Keyword, ...]], KeywordTree] = OrderedDict()
        self._spellers: dict[Path, Spell] = {}

    def tree(
        self, keywords: Sequence[Keyword] = (), *, param: str = "keywords[]"
    ) -> KeywordTree | None:
        """Return the tree of a request's phrases and the `always` ones; `None` without any.

        Raises `InvalidRequestError`, naming a phrase that the model's pieces cannot spell, and
        what `checkpoint` raises.
        """
        if not keywords and not self._always:
            return None
        path = self._checkpoint()
        key = path, tuple(keywords)
        with self._lock:
            if (known := self._trees.get(key)) is not None:
                self._trees.move_to_end(key)
                return known
        tree = self._build(self._speller(path), key[1], param)
        with self._lock:
            self._trees[key] = tree
            while len(self._trees) > _KEPT:
                self._trees.popitem(last=False)
        return tree

    def _build(self, spell: Spell, keywords: tuple[Keyword, ...], param: str) -> KeywordTree:
        for keyword in keywords:
            if not is_spelled(keyword, spell):
                raise InvalidRequestError(
                    f"{param}={keyword.phrase!r} has letters that the model cannot write.",
                    param=param,
                )
        given = {keyword.phrase for keyword in keywords}
        always = [k for k in self._always if k.phrase not in given and is_spelled(k, spell)]
        return build_tree((*keywords, *always), spell)

    def _speller(self, path: Path) -> Spell:
        with self._lock:
            speller = self._spellers.get(path)
            if speller is None:
                speller = self._spellers[path] = read_speller(path)
                for keyword in self._always:
                    if not is_spelled(keyword, speller):
                        logger.warning(
                            "the model cannot write the keyword %r of KEYWORDS_FILE", keyword.phrase
                        )
        return speller


def read_speller(checkpoint: Path) -> Spell:
    """Read a `.nemo` file's tokenizer; the result returns `()` for text that it cannot spell."""
    from sentencepiece import SentencePieceProcessor

    with tarfile.open(checkpoint) as archive:
        tokenizers = [m for m in archive if m.isfile() and m.name.endswith(_TOKENIZER_SUFFIX)]
        file = archive.extractfile(tokenizers[0]) if len(tokenizers) == 1 else None
        if file is None:
            logger.warning(
                "keywords have no effect: %s has no single SentencePiece model", checkpoint
            )
            return lambda _: ()
        processor = SentencePieceProcessor(model_proto=file.read())
    unknown = processor.unk_id()

    def spell(text: str) -> Sequence[int]:
        pieces: list[int] = processor.encode(text)
        if unknown in pieces:
            # Most models have no special characters other than punctuation.
            pieces = processor.encode(re.sub(r"[^\w\s']", " ", text))
        return () if unknown in pieces else pieces

    return spell


def read_keywords_file(path: Path, *, name: str) -> tuple[Keyword, ...]:
    """Read phrases from a text file, one per line; skip empty lines and those that begin with `#`.

    Raises `SettingsError` that refers to the file's setting by `name`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}={str(path)!r} cannot be read: {error}") from error
    phrases = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    try:
        return parse_keywords(phrases, param=name)
    except InvalidRequestError as error:
        raise SettingsError(error.message) from error
