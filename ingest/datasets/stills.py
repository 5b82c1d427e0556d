"""A camera recorded as numbered image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnstore.store.errors import EpisodeError
from attnstore.store.image import DamagedImageError, ImageError, decode, plain, read_header

from .base import CameraFrame

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of image files; what is in one decides what it is."""


@dataclass(frozen=True, slots=True)
class Stills:
    """One camera's frames as image files, ``00000.jpg`` first, without gaps."""

    episode: str
    camera: str
    paths: tuple[Path, ...]
    """One file a frame; the position is the frame's index."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def source(self) -> str:
        """Directory or kind of file under ``recordings/``."""
        return "frames"

    @property
    def rate(self) -> None:
        """Image files don't record a frame rate."""
        return None

    def check_sizes(self) -> None:
        """Read the first file, and every file's size: all frames of a camera have one.

        Raises
        ------
        EpisodeError
            If the first file is no image that is taken, a header is unreadable, or a size differs
            from the first frame's.
        """
        first: tuple[int, int] | None = None
        for path in self.paths:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise self._undecodable(path, DamagedImageError("no file"))
            try:
                if first is None:
                    read_header(path.read_bytes())
                with Image.open(path) as image:
                    size = image.size
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise self._undecodable(path, error) from error
            first = first or size
            if size != first:
                raise self._resized(path, size, first)

    def read(self, indices: Sequence[int]) -> Iterator[CameraFrame]:
        """Yield the asked frames in the given order, as `still` keeps them.

        Raises
        ------
        EpisodeError
            If a file cannot be read, is cut short, is no image that is taken, or differs in size
            from those before it.
        """
        first: tuple[int, int] | None = None
        for index in indices:
            path = self.paths[index]
            try:
                frame = still(self.camera, path.read_bytes())
            except (OSError, ValueError) as error:
                raise self._undecodable(path, error) from error
            size = (frame.rgb.shape[1], frame.rgb.shape[0])
            first = first or size
            if size != first:
                raise self._resized(path, size, first)
            yield frame

    def _undecodable(self, path: Path, error: Exception) -> EpisodeError:
        size = path.stat().st_size if path.exists() else 0  # a dangling link does not exist
        where = f"recordings/frames/{self.camera}/{path.name} ({size} bytes)"
        return EpisodeError(self.episode, refused(where, error))

    def _resized(self, path: Path, size: tuple[int, int], first: tuple[int, int]) -> EpisodeError:
        return EpisodeError(
            self.episode,
            f"all frames of a camera have one size: recordings/frames/{self.camera}/{path.name} is "
            f"{size[0]}x{size[1]}, the frames before it are {first[0]}x{first[1]}; "
            "re-export the camera's frames at one size",
        )


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """One camera's frames as encoded images among other values of an episode."""

    episode: str
    camera: str
    where: str
    """What they are called in an error: ``steps/observation/image``."""
    data: Sequence[bytes]
    """One image a step."""

    def __len__(self) -> int:
        return len(self.data)

    def check(self) -> None:
        """Read every image's header: all frames of a camera have one size.

        Raises
        ------
        EpisodeError
            If one is no image that is taken, or differs in size.
        """
        first: tuple[int, int] | None = None
        for step, data in enumerate(self.data):
            try:
                header = read_header(data)
            except ImageError as error:
                raise self._refused(step, error) from error
            size = (header.width, header.height)
            first = first or size
            if size != first:
                raise EpisodeError(
                    self.episode,
                    f"all frames of a camera have one size: {self.where}[{step}] is "
                    f"{size[0]}x{size[1]}, the first {first[0]}x{first[1]}",
                )

    def read(self, step: int) -> CameraFrame:
        """Decode one image, as `still` keeps it.

        Raises
        ------
        EpisodeError
            If it is no complete image.
        """
        try:
            return still(self.camera, self.data[step])
        except ImageError as error:
            raise self._refused(step, error) from error

    def _refused(self, step: int, error: Exception) -> EpisodeError:
        where = f"{self.where}[{step}] ({len(self.data[step])} bytes)"
        return EpisodeError(self.episode, refused(where, error))


def still(camera: str, data: bytes, *, upright: bool = False) -> CameraFrame:
    """Make a frame of an encoded image: the policy sees what every reader of the store will see.

    Parameters
    ----------
    upright
        Turn it as its EXIF orientation says.

    Raises
    ------
    ImageError
        If it is no complete image, or one without exact pixels of 8 bits a channel.
    """
    kept, media_type = plain(data, upright=upright)
    return CameraFrame(camera, kept, media_type, decode(kept))


def refused(where: str, error: Exception) -> str:
    """Say why an image is not taken, and what to do."""
    if isinstance(error, ImageError) and not isinstance(error, DamagedImageError):
        return f"{where} is {error}"
    # Pillow's reasons may carry the absolute path or the buffer's address
    brief = " ".join(str(error).partition(" '")[0].partition(" <")[0].split()).rstrip(":")
    return f"{where} is not a complete image: {brief}; copy the file again"
