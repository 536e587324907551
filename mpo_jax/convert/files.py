"""What a model directory holds besides tensors: JSON, files to carry along, itself."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax.utils import atomic, remote

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = "tensor_dtypes.json"
"""Record of a converted checkpoint: dtype that each tensor had in its source."""

KEPT = "original"
"""Sub-directory of a native model with the files of the original it came from."""

CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", *CHAT_TEMPLATES),
)
"""What makes a tokenizer, and the template that is saved with one."""

_MAX_JSON_BYTES = 64 * 2**20
# Weights in any format, and what trainers leave beside them.
_NOT_CARRIED = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"),
    *("*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.npz"),
    *("optimizer*", "scheduler*", "rng_state*", "trainer_state.json"),
    *("training_args*", "zero_to_fp32.py", "latest", "*.tfevents.*", ".*", DTYPES),
)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object of bounded size; ValueError names the file."""
    _check_json_size(file, file.stat().st_size)
    return _parse(file, file.read_bytes())


def read_json_at(place: str | pathlib.Path, name: str) -> dict[str, Any]:
    """:func:`read_json` of a file in a directory, or behind an address."""
    if not remote.is_remote(place):
        return read_json(pathlib.Path(place) / name)
    folder, where = remote.Folder(str(place)), remote.join(place, name)
    _check_json_size(where, folder.sizes().get(name, 0))
    return _parse(where, folder.read(name))


def _check_json_size(where: Any, size: int) -> None:
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{where}: {size} bytes; at most {_MAX_JSON_BYTES} are read")


def _parse(where: Any, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a JSON object is expected")
    return content


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
    """Put a file's name on errors of writing to it; the system leaves it out."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def file_sizes(place: str | pathlib.Path) -> dict[str, int]:
    """Bytes of every plain file directly in a directory or behind an address."""
    if remote.is_remote(place):
        return remote.Folder(str(place)).sizes()
    path = pathlib.Path(place)
    if not path.is_dir():
        return {}
    return {f.name: f.stat().st_size for f in path.iterdir() if f.is_file()}


def is_carried(name: str) -> bool:
    """Whether a file is neither weights nor what trainers and downloads leave."""
    return not any(pathlib.PurePath(name).match(p) for p in _NOT_CARRIED)


def carried_files(source_dir: str | pathlib.Path) -> list[pathlib.Path]:
    """Files of a model directory that an export takes along untouched.

    Configuration, tokenizer, remote code and texts: every plain file of the directory
    itself but weights, their index, and what trainers and downloads leave behind.
    """
    return sorted(
        file
        for file in pathlib.Path(source_dir).iterdir()
        if file.is_file() and is_carried(file.name)
    )


def copy_carried(source_dir: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """Copy :func:`carried_files`, following the links of a download cache.

    Contents alone: modes of a read-only model store would forbid to replace the copy.
    """
    for file in carried_files(source_dir):
        shutil.copyfile(file, pathlib.Path(target) / file.name)


def copy_model_files(
    source_dir: str | pathlib.Path, target: str | pathlib.Path
) -> None:
    """:func:`copy_carried`, with what a native model keeps of its original."""
    copy_carried(source_dir, target)
    kept = pathlib.Path(source_dir) / KEPT
    if kept.is_dir():
        (pathlib.Path(target) / KEPT).mkdir(exist_ok=True)
        copy_carried(kept, pathlib.Path(target) / KEPT)


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as released files have it: indented, in UTF-8."""
    text = json.dumps(dict(content), indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _check_target(target: pathlib.Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; give a directory")
    check_names(target, {p.name for p in target.iterdir()}, overwrite=overwrite)


def check_names(target: Any, names: set[str], *, overwrite: bool) -> None:
    """Check that a place that holds `names` may be written to.

    Raises:
      FileExistsError: if it holds something and `overwrite` is False, or no model.
    """
    if names and not overwrite:
        raise FileExistsError(
            f"{target} is not empty; give another directory, or allow overwriting"
        )
    model_files = {"config.json", SINGLE, INDEX, "params"}
    if names and not names & model_files:
        raise FileExistsError(
            f"{target} holds no model but {sorted(names)[:3]}; it is not "
            "overwritten, give another directory"
        )


@contextlib.contextmanager
def _reserved(
    directory: str | pathlib.Path, *, overwrite: bool
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """The place to write and the hidden sibling for it, for one process at a time.

    What killed processes left of a replacement is cleared up.
    """
    remote.refuse(directory, field="directory", why="a model appears there by a rename")
    target = pathlib.Path(os.path.expanduser(directory)).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)

    def refuse() -> None:
        raise FileExistsError(
            f"{target}: another process is writing it; wait, or stop that one"
        )

    with atomic.alone(target.with_name(f".{target.name}.lock"), busy=refuse):
        _clear_up(target)
        _check_target(target, overwrite=overwrite)
        yield target, target.with_name(f".{target.name}.partial")


def _clear_up(target: pathlib.Path) -> None:
    """Undo or complete a replacement that was killed between its two renames."""
    replaced = _replaced(target)
    if replaced.exists() and target.exists():
        remove_tree(replaced)
    elif replaced.exists():
        replaced.rename(target)


@contextlib.contextmanager
def new_directory(
    directory: str | pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """A directory that appears complete or not at all.

    Yields a hidden sibling to write into, and renames it at the end. What it replaces
    is deleted only after the rename; what a killed process left is deleted at once.

    Raises:
      FileExistsError: if `directory` is a file, or holds something and `overwrite` is
        False, or what it holds is no model, or another process is at work on it.
      ValueError: if it is an address, where nothing can be renamed.
    """
    with _reserved(directory, overwrite=overwrite) as (target, partial):
        if partial.exists():
            remove_tree(partial)
        partial.mkdir()
        try:
            yield partial
            _appear(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _replaced(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.replaced")


def _appear(partial: pathlib.Path, target: pathlib.Path) -> None:
    replaced = _replaced(target)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    if replaced.exists():
        remove_tree(replaced)


def remove_tree(directory: pathlib.Path) -> None:
    """Delete a directory of our own, also where its folders were made read-only."""
    for folder, _, _ in os.walk(directory):
        mode = os.stat(folder).st_mode
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(folder, mode | stat.S_IRWXU)
    shutil.rmtree(directory)


class Progress:
    """What is done of a job that may be killed: one line per finished step.

    Attributes:
      resumed: whether an earlier run of the same job left something.
    """

    def __init__(self, file: pathlib.Path, *, resumed: bool):
        self.resumed = resumed
        self._file = file
        text = file.read_text(encoding="utf-8") if resumed and file.exists() else ""
        # A line without its end was cut by the kill.
        self._done = set(text[: text.rfind("\n") + 1].splitlines())
        file.write_text("".join(f"{s}\n" for s in sorted(self._done)), encoding="utf-8")

    def done(self, step: str) -> bool:
        return step in self._done

    def mark(self, step: str) -> None:
        """Note a step whose result is on disk."""
        self._done.add(step)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"{step}\n")


@contextlib.contextmanager
def resumable_directory(
    directory: str | pathlib.Path, *, job: Mapping[str, Any], overwrite: bool = False
) -> Iterator[tuple[pathlib.Path, Progress]]:
    """:func:`new_directory` for a job that goes on where it was killed.

    The hidden sibling has the same name in every run, and remembers the job. One that
    another job left is thrown away; so is ours after a ``ValueError``, since the same
    job would fail again.

    Args:
      job: JSON-able description of all that decides the result.

    Raises:
      FileExistsError, ValueError: as :func:`new_directory`.
    """
    with _reserved(directory, overwrite=overwrite) as (target, partial):
        description = json.dumps(dict(job), sort_keys=True, indent=1)
        note = partial / ".job.json"
        resumed = note.is_file() and note.read_text(encoding="utf-8") == description
        if not resumed:
            if partial.exists():
                remove_tree(partial)
            partial.mkdir()
            note.write_text(description, encoding="utf-8")
        steps = partial / ".progress"
        try:
            yield partial, Progress(steps, resumed=resumed)
            note.unlink()
            steps.unlink()
            _appear(partial, target)
        except ValueError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def fingerprint(directory: str | pathlib.Path) -> list[list[Any]]:
    """Name, size and time of a directory's own files, to notice another source."""
    if remote.is_remote(directory):
        return remote.Folder(str(directory)).state()
    found = []
    for file in sorted(pathlib.Path(directory).iterdir()):
        if file.is_file():
            state = file.stat()
            found.append([file.name, state.st_size, state.st_mtime_ns])
    return found


def special_token_id(directory: str | pathlib.Path, token: str) -> int | None:
    """Id of an added token, from the tokenizer files of a directory; None if unknown.

    Raises:
      ValueError: if a file is malformed, or two files give different ids.
    """
    found: dict[str, int] = {}
    for name, read in _ADDED_TOKENS.items():
        file = pathlib.Path(directory) / name
        if not file.is_file():
            continue
        content = read_json(file)
        try:
            ids = read(content)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}: unexpected content ({error!r})") from error
        if token in ids:
            found[name] = ids[token]
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{directory}: the files disagree about the id of {token}: {found}"
        )
    return next(iter(found.values()), None)


# How each tokenizer file lists tokens that were added to the vocabulary.
_ADDED_TOKENS = {
    "added_tokens.json": lambda c: {str(k): int(v) for k, v in c.items()},
    "tokenizer_config.json": lambda c: {
        str(v["content"]): int(k) for k, v in c.get("added_tokens_decoder", {}).items()
    },
    "tokenizer.json": lambda c: {
        str(v["content"]): int(v["id"]) for v in c.get("added_tokens", [])
    },
}
