"""The settings, by their names in the environment and in their tables."""

from __future__ import annotations

import dataclasses
import itertools
import re

from conftest import ROOT

from parakeet_api.settings import Settings, variable_name

OF_THE_IMAGE = {"PUID", "PGID"}
"""Documented as well, but not read by `settings`."""


FIELDS = {variable_name(f): f for f in dataclasses.fields(Settings) if f.metadata}


ALL_NAMES = [name for f in FIELDS.values() for name in f.metadata["names"]]


TABLES = ("docs/settings.md", "docs/settings.zh-CN.md")


def table_rows(page: str) -> dict[str, str]:
    """Read the tables of a page: variable -> default, as written."""
    rows: dict[str, str] = {}
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        names = re.fullmatch(r"`[A-Z_]+`(, `[A-Z_]+`)*", cells[0]) if len(cells) > 1 else None
        if names is None:
            continue
        variables = re.findall(r"[A-Z_]+", cells[0])
        defaults = cells[1].split(", ", len(variables) - 1)
        # One default may stand for all: `PUID`, `PGID` | 1000.
        rows |= itertools.zip_longest(variables, defaults, fillvalue=defaults[0])
    return rows
