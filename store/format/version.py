"""The version of the format that is written here."""

from __future__ import annotations

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
