"""Which versions of the format are read, and what is said of others.

A store's marker, its runs' files, every entry of its log and the root group of every part's arrays say
the version, ``major.minor``, of who wrote them. A newer *minor* version is read: what it added is
ignored. A newer *major* version is refused: what is known here need not hold any more.
docs/format.md says what a minor version may change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import IntegrityError, UnsupportedFormatError

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
_UPGRADE = "pip install --upgrade attnstore"

Version = tuple[int, int]
"""(major, minor)."""


def written() -> dict[str, int]:
    """Return the version that files written here say.

    Examples
    --------
    >>> sorted(written())
    ['major', 'minor']
    """
    return {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR}


def check_version(document: Mapping[str, Any], where: object) -> Version:
    """Read a document's ``format`` and refuse a newer major version.

    Parameters
    ----------
    where
        The file, for messages.

    Raises
    ------
    UnsupportedFormatError
        If a newer major version wrote it.
    IntegrityError
        If it says no version.

    Examples
    --------
    >>> check_version({"format": {"major": 1, "minor": 7}}, "attnstore.json")
    (1, 7)
    """
    value = document.get("format")
    said = (value.get("major"), value.get("minor")) if isinstance(value, dict) else (None, None)
    major, minor = said
    if type(major) is not int or type(minor) is not int or major < 1 or minor < 0:
        raise IntegrityError(f"{where}: no format version in it")
    if major > FORMAT_MAJOR:
        raise UnsupportedFormatError(
            f"{where} has format version {major}; this attnstore reads up to {FORMAT_MAJOR}: {_UPGRADE}"
        )
    return major, minor


def is_newer(version: Version) -> bool:
    """Whether a document is of a later version than what is known here.

    Examples
    --------
    >>> is_newer((FORMAT_MAJOR, FORMAT_MINOR)), is_newer((FORMAT_MAJOR, FORMAT_MINOR + 1))
    (False, True)
    """
    return version > (FORMAT_MAJOR, FORMAT_MINOR)


def explained(error: IntegrityError, version: Version) -> IntegrityError:
    """Say with an error that a newer version may be why, if the document is of one."""
    if not is_newer(version):
        return error
    text = re.sub(r"[.\s]+$", "", str(error))
    return IntegrityError(
        f"{text}; it is of format version {version[0]}.{version[1]}, this attnstore knows "
        f"{FORMAT_MAJOR}.{FORMAT_MINOR}: {_UPGRADE}"
    )


@contextmanager
def described(group: Mapping[str, Any], attribute: str, where: str) -> Iterator[Mapping[str, Any]]:
    """Take the description of a part out of its root group, if it is of a version that is read.

    What is raised while it is in use says that a newer version may be why, if it is of one.

    Parameters
    ----------
    group
        The root group's ``zarr.json``.
    attribute
        ``attnstore_episode`` or ``attnstore_cnn``.
    where
        The file, for messages.

    Raises
    ------
    UnsupportedFormatError
        If a newer major version wrote it.
    IntegrityError
        If there is no such description, or no version.
    """
    attributes = group.get("attributes")
    found = attributes.get(attribute) if isinstance(attributes, dict) else None
    if not isinstance(attributes, dict) or not isinstance(found, dict):
        raise IntegrityError(f"{where}: no {attribute} in its attributes")
    version = check_version({"format": attributes.get("attnstore_format")}, where)
    try:
        yield found
    except IntegrityError as error:
        raise explained(IntegrityError(f"{where}: {error}"), version) from None
