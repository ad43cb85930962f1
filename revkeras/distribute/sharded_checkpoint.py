"""Checkpoints of sharded training: each rank writes its slices, any number of ranks reads them.

A checkpoint is a folder `step-00000100` with two files a rank, the values (`.bin`) and
what they are (`.json`), and a `manifest.json`. It is written under another name and
renamed when complete, so a folder of that name is whole unless a disk damaged it. So is
`step-00000100.old`, which stays where a write was stopped while it replaced that step's.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  makes NumPy know "bfloat16"
import numpy as np

from revkeras.distribute import membership

_OLD = ".old"
_COMPLETE = re.compile(rf"step-(\d{{8,}})({re.escape(_OLD)})?$")
_UNFINISHED = re.compile(r"step-(\d{8,})\.tmp-[0-9a-f]+$")
_CHUNK = 2**24
_FORMAT = 2  # names are places in the model
_SHOWN = 6  # differences that an error lists

# What the names of a model's weights start with, and those of its random generators' states.
WEIGHTS = "model/"
SEEDS = "seed/"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read."""


def write(
    directory: str | os.PathLike,
    pieces: Sequence,
    *,
    step: int,
    rank: int = 0,
    size: int = 1,
    keep: int = 3,
    position: dict | None = None,
    local: dict | None = None,
) -> Path:
    """Writes a checkpoint; to be called by all ranks together.

    A rank holds the values of one piece at a time.

    Args:
        directory: The folder of all checkpoints, on a file system that all ranks share.
        pieces: This rank's `StatePiece`s.
        step: Integer, which step this is.
        rank: Integer, this worker's rank.
        size: Integer, how many workers there are.
        keep: Integer, how many checkpoints stay; older ones are removed when this one
            is complete. Defaults to `3`.
        position: JSON values that all ranks share, such as the place in the epoch.
        local: Dictionary of this rank's own small arrays.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if a rank cannot write; on all ranks, and says which.
    """
    directory = Path(directory)
    name = f"step-{step:08d}"
    unfinished = directory / membership.exchange(f"{name}.tmp-{uuid.uuid4().hex[:12]}")[0]
    with _together(f"write checkpoint {name} to {directory}"):
        if rank == 0:
            _remove_unfinished(directory)
            unfinished.mkdir(parents=True)
    try:
        summaries = []
        with _together(f"write checkpoint {name} to {directory}", summaries):
            if not unfinished.is_dir():
                raise FileNotFoundError(
                    f"{unfinished}, which rank 0 made, is not there: the folder has to be on a "
                    "file system that all workers share"
                )
            summaries.append(_write_rank(unfinished, rank, size, pieces, local or {}))
        with _together(f"complete checkpoint {name} in {directory}"):
            if rank == 0:
                manifest = {
                    "format": _FORMAT,
                    "step": step,
                    "size": size,
                    "position": position,
                    "ranks": summaries,
                }
                _complete(directory, unfinished, name, manifest, keep)
    except CheckpointError:
        if rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return directory / name


class ShardedCheckpoint:
    """A complete checkpoint, opened for reading.

    Args:
        folder: The checkpoint's own folder, such as `checkpoints/step-00000100`.

    Raises:
        CheckpointError: if the manifest or an index is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        manifest = self._manifest()
        self.step: int = manifest["step"]
        self.size: int = manifest["size"]
        self.position: dict | None = manifest["position"]
        self._indices = [self._index(summary) for summary in manifest["ranks"]]
        self._pieces: dict[str, list[tuple[dict, Path]]] = {}
        for index, summary in zip(self._indices, manifest["ranks"]):
            for piece in index["pieces"]:
                place = (piece, self.folder / f"{summary['file']}.bin")
                self._pieces.setdefault(piece["name"], []).append(place)

    def check(self, shapes: Mapping[str, tuple[int, ...]], seeds: Iterable[str] = ()) -> None:
        """Makes sure that it is of the same model and can give all of these tensors.

        An optimizer may have kept more than is asked for, as for weights that are frozen now.

        Args:
            shapes: By names, the shapes of whole tensors.
            seeds: The names of the random generators' states, which are among `local`.

        Raises:
            CheckpointError: if a tensor is not there, or has another shape, or if weights or
                random generators are there that are not among the names.
        """
        stored = {name: _shape(places) for name, places in self._pieces.items()}
        stored_seeds = {name for name in self._indices[0]["local"] if name.startswith(SEEDS)}
        found = [*_different(stored, shapes), *_without_other(stored_seeds, {*seeds})]
        if found:
            more = f", and {len(found) - _SHOWN} more differences" if len(found) > _SHOWN else ""
            raise CheckpointError(
                f"Checkpoint {self.folder} is not of this model and optimizer: "
                f"{'; '.join(found[:_SHOWN])}{more}. Expected the models and optimizers that wrote "
                "it, and no others: train another model with a folder of its own, and one that is "
                "built again with a new ZeroStrategy, which knows nothing of the model before."
            )

    def local(self, rank: int) -> dict[str, np.ndarray]:
        """The small arrays that were one rank's own."""
        stored = self._indices[rank]["local"]
        return {name: np.array(values, dtype) for name, (values, dtype) in stored.items()}

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Reads a range of a flattened tensor, from whichever ranks wrote parts of it.

        Raises:
            CheckpointError: if it is not there, or not all of it.
        """
        places = self._places(name)
        dtype = np.dtype(places[0][0]["dtype"])
        values = np.empty(stop - start, dtype)
        filled = 0
        for piece, file in places:
            first, last = max(start, piece["start"]), min(stop, piece["stop"])
            if first < last:
                offset = piece["offset"] + (first - piece["start"]) * dtype.itemsize
                target = values[first - start : last - start].view(np.uint8)
                with open(file, "rb") as stream:
                    stream.seek(offset)
                    stream.readinto(target)
                filled += last - first
        if filled != stop - start:
            raise CheckpointError(
                f"Checkpoint {self.folder} holds {filled} of the elements {start} to {stop} of "
                f"'{name}', whose shape in it is {_shape(places)}."
            )
        return values

    def problems(self, ranks: Sequence[int]) -> list[str]:
        """What is wrong with the values that these ranks wrote; reads all of them."""
        found = []
        for rank in ranks:
            file = self.folder / f"{_file(rank, self.size)}.bin"
            try:
                found += _damage(file, self._indices[rank]["pieces"])
            except OSError as error:
                found.append(f"{file.name}: {error.strerror}")
        return found

    def _places(self, name: str) -> list[tuple[dict, Path]]:
        if name not in self._pieces:
            raise CheckpointError(f"Checkpoint {self.folder} has no tensor '{name}'.")
        return self._pieces[name]

    def _manifest(self) -> dict:
        try:
            text = (self.folder / "manifest.json").read_bytes()
            checksum, _, body = text.partition(b"\n")
            if checksum.decode() != _checksum(body):
                raise CheckpointError("manifest.json has another checksum")
            return json.loads(body)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"manifest.json: {error}") from error

    def _index(self, summary: dict) -> dict:
        name = f"{summary['file']}.json"
        try:
            body = (self.folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{name}: {error.strerror}") from error
        if _checksum(body) != summary["checksum"]:
            raise CheckpointError(f"{name} has another checksum")
        return json.loads(body)


def newest(
    directory: str | os.PathLike, *, rank: int = 0, size: int = 1
) -> ShardedCheckpoint | None:
    """Opens the last good checkpoint; to be called by all ranks together.

    Damaged and half-written ones are named in a warning and passed over. The ranks
    share the work of checking all values.

    Args:
        directory: The folder of all checkpoints.
        rank: Integer, this worker's rank.
        size: Integer, how many workers there are.

    Returns:
        A `ShardedCheckpoint`, or `None` if there is none.

    Raises:
        CheckpointError: if there are some and all are damaged.
    """
    directory = Path(directory)
    names = membership.exchange(_names(directory))[0]
    damaged = []
    for name in sorted(names, key=_age, reverse=True):
        if _UNFINISHED.match(name):
            _warn(
                rank, f"{directory / name} is a checkpoint that was never completed. Passed over."
            )
            continue
        checkpoint, problems = None, []
        try:
            checkpoint = ShardedCheckpoint(directory / name)
            problems = checkpoint.problems(range(rank, checkpoint.size, size))
        except CheckpointError as error:
            problems = [str(error)]
        everyone = [problem for each in membership.exchange(problems) for problem in each]
        if not everyone:
            return checkpoint
        damaged.append(name)
        _warn(rank, f"Checkpoint {directory / name} is damaged: {everyone[0]}. Passed over.")
    if damaged:
        raise CheckpointError(
            f"All checkpoints in {directory} are damaged: {', '.join(damaged)}. Restore one of "
            "them from a copy, or remove the folder to start anew."
        )
    return None


@contextlib.contextmanager
def _together(what: str, results: list | None = None) -> Iterator[None]:
    """Does something on each rank; raises on all if one fails. Shares the results."""
    problem = None
    try:
        yield
    except OSError as error:
        problem = f"{error}"
    everyone = membership.exchange([problem, results or None])
    failed = [(rank, problem) for rank, (problem, _) in enumerate(everyone) if problem is not None]
    if failed:
        reasons = "; ".join(f"rank {rank}: {problem}" for rank, problem in failed)
        raise CheckpointError(f"Cannot {what}. {reasons}.")
    if results is not None:
        results[:] = [each for _, values in everyone for each in values or ()]


def _write_rank(
    folder: Path, rank: int, size: int, pieces: Sequence, local: dict[str, np.ndarray]
) -> dict:
    name = _file(rank, size)
    records = []
    with open(folder / f"{name}.bin", "wb") as stream:
        for piece in pieces:
            if piece.start >= piece.stop:
                continue
            values = np.ascontiguousarray(piece.read(), np.dtype(piece.dtype))
            data = values.reshape(-1).view(np.uint8).data
            records.append(
                {
                    "name": piece.name,
                    "shape": list(piece.shape),
                    "dtype": piece.dtype,
                    "start": piece.start,
                    "stop": piece.stop,
                    "offset": stream.tell(),
                    "checksum": _checksum(data),
                }
            )
            stream.write(data)
        _to_disk(stream)
    arrays = {key: (np.asarray(a).tolist(), str(np.asarray(a).dtype)) for key, a in local.items()}
    body = json.dumps({"pieces": records, "local": arrays}).encode()
    _write_file(folder / f"{name}.json", body)
    return {"file": name, "checksum": _checksum(body)}


def _complete(directory: Path, unfinished: Path, name: str, manifest: dict, keep: int) -> None:
    body = json.dumps(manifest).encode()
    _write_file(unfinished / "manifest.json", _checksum(body).encode() + b"\n" + body)
    old = directory / f"{name}{_OLD}"
    if (directory / name).exists():  # a kill at any place leaves this one or that one whole
        shutil.rmtree(old, ignore_errors=True)
        (directory / name).rename(old)
    unfinished.rename(directory / name)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)
    others = [each for each in _names(directory) if _COMPLETE.match(each) and each != name]
    for each in sorted(others, key=_age)[: max(len(others) + 1 - keep, 0)]:
        shutil.rmtree(directory / each, ignore_errors=True)


def _names(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    names = (each.name for each in directory.iterdir())
    return [name for name in names if _COMPLETE.match(name) or _UNFINISHED.match(name)]


def _age(name: str) -> tuple[int, bool]:
    """What folders' names are sorted by, from the oldest."""
    step = (_COMPLETE.match(name) or _UNFINISHED.match(name))[1]
    return int(step), not name.endswith(_OLD)


def _different(stored: Mapping[str, tuple], shapes: Mapping[str, tuple]) -> Iterator[str]:
    """What differs between stored tensors and those that are asked for, weights first."""
    weights = [name for name in [*shapes, *stored] if name.startswith(WEIGHTS)]
    for name in dict.fromkeys([*weights, *shapes]):
        if name not in stored:
            yield f"it has no '{name}' of shape {tuple(shapes[name])}"
        elif name not in shapes:
            yield f"it has '{name}' of shape {stored[name]}, which the model has not"
        elif stored[name] != tuple(shapes[name]):
            yield (
                f"it has '{name}' of shape {stored[name]}, and the model or its optimizer has it "
                f"of shape {tuple(shapes[name])}"
            )


def _without_other(stored: set[str], own: set[str]) -> Iterator[str]:
    for name in sorted(own - stored):
        yield f"it has no '{name}'"
    for name in sorted(stored - own):
        yield f"it has '{name}', which the model has not"


def _shape(places: Sequence[tuple[dict, Path]]) -> tuple[int, ...]:
    return tuple(places[0][0]["shape"])


def _remove_unfinished(directory: Path) -> None:
    for name in _names(directory):
        if _UNFINISHED.match(name):
            shutil.rmtree(directory / name, ignore_errors=True)


def _damage(file: Path, pieces: Sequence[dict]) -> list[str]:
    found = []
    with open(file, "rb") as stream:
        for piece in pieces:
            remaining = (piece["stop"] - piece["start"]) * np.dtype(piece["dtype"]).itemsize
            stream.seek(piece["offset"])
            checksum = 0
            while remaining > 0 and (chunk := stream.read(min(_CHUNK, remaining))):
                checksum = zlib.crc32(chunk, checksum)
                remaining -= len(chunk)
            if remaining > 0:
                return [*found, f"{file.name} ends inside '{piece['name']}'"]
            if f"{checksum:08x}" != piece["checksum"]:
                found.append(f"{file.name}: '{piece['name']}' has another checksum")
    return found


def _file(rank: int, size: int) -> str:
    return f"rank-{rank:05d}-of-{size:05d}"


def _checksum(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def _write_file(file: Path, data: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(data)
        _to_disk(stream)


def _to_disk(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _warn(rank: int, message: str) -> None:
    if rank == 0:
        warnings.warn(message, stacklevel=3)
