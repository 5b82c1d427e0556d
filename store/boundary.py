"""Where an exception becomes the error of one episode, so that it does not end the run of all.

What an episode's data make a reader or a model's processor raise cannot be listed: libraries raise
what they like. So whatever comes out of reading an episode is that episode's error, but for what
says by its class that it would come out of every episode.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import AttnstoreError, EpisodeError, NotFoundError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MACHINE = _FULL | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def is_full(error: BaseException) -> bool:
    """Whether there is no room for what is written: on the disk, in a quota, in a file.

    Examples
    --------
    >>> is_full(OSError(errno.EDQUOT, "Disk quota exceeded")), is_full(OSError(errno.EIO, "I/O"))
    (True, False)
    """
    return isinstance(error, OSError) and error.errno in _FULL


def concerns_all(error: Exception) -> bool:
    """Whether an exception is of the machine, the installation or the command, not of the data.

    Examples
    --------
    >>> concerns_all(OSError(errno.ENOSPC, "No space left on device")), concerns_all(KeyError("x"))
    (True, False)
    """
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return True
    # torch's names for a full or broken device, without importing it
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return True
    if isinstance(error, EpisodeError | NotFoundError):
        return False
    return isinstance(error, AttnstoreError | ImportError | MemoryError)


def told(error: Exception) -> str:
    """Say an exception in one line: its class, and its text unless it is long."""
    text = " ".join(str(error).split())
    # attnstore's own errors are sentences
    return text if isinstance(error, AttnstoreError) else f"{type(error).__name__}: {text[:300]}"


@contextmanager
def episode_errors(episode: str, what: str) -> Iterator[None]:
    """Turn what is raised inside into an `EpisodeError`, unless it concerns all episodes.

    Parameters
    ----------
    what
        What was being done, for the message: ``reading frame 8``.

    Raises
    ------
    EpisodeError
        Instead of any exception that is none; its text names the original class.
    """
    try:
        yield
    except EpisodeError:
        raise
    except Exception as error:
        if concerns_all(error):
            raise
        raise EpisodeError(episode, f"{what}: {told(error)}") from error
