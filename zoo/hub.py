"""Posteriors on the Hugging Face Hub, or in a shared folder: ``zoo push`` and ``zoo pull``.

What is pulled is data from elsewhere: only the two files of the posterior are taken, never the report, which is a page
that a browser would run. They are checked as every artifact is before they come into place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from zoo import __version__, artifacts, outputs
from zoo.errors import ArtifactError, DataError, HubError, MissingExtraError

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["front_matter", "place", "pull", "push"]

_META, _TENSORS = "posterior.json", "posterior.safetensors"
_REPORT = ("report.html", "report.json")
_README = "README.md"
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
# How the terms of the data sets are called there; others are "other", with their own name.
_LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC0": "cc0-1.0",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
}
_METRICS = {"accuracy": "accuracy", "brier": "brier_score", "rmse": "rmse"}


def place(text: str) -> Path | str:
    """Read where posteriors are kept.

    Args:
        text: ``OWNER/NAME`` of a repository, which ``hf:OWNER/NAME`` names even beside a folder so called; an existing
            folder; or ``file:PATH``.

    Returns:
        The path of a folder, or ``OWNER/NAME``.

    Raises:
        DataError: If it is none of these.
    """
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if path.startswith("//"):
            path = unquote(path.removeprefix("//").removeprefix("localhost"))
        if path and "\0" not in path:
            return Path(path)
    elif not text.startswith("hf:") and text and "\0" not in text and Path(text).is_dir():
        return Path(text)
    elif re.fullmatch(_REPO, repo := text.removeprefix("hf:"), flags=re.ASCII):
        return repo
    raise DataError(
        f"'{text}' is neither a repository OWNER/NAME nor a folder that exists; a new folder is written file:PATH"
    )


# ------------------------------------------------------------------------------------------------------------ push
def push(
    folder: str | os.PathLike[str],
    target: str,
    *,
    private: bool = False,
    with_data: bool = False,
    overwrite: bool = False,
    message: str | None = None,
) -> str:
    """Publish a saved posterior with its report and model card.

    The posterior is checked before. A report that is missing, or of another fit, is written anew; ``folder`` itself
    stays as it is. On the Hub all files come in one commit.

    Args:
        folder: What ``zoo fit`` or :meth:`Posterior.save` wrote.
        target: Where to, see :func:`place`.
        private: Whether a repository that is made is private.
        with_data: Let training rows go to the Hub that the posterior stores because they are the user's own.
        overwrite: Replace a posterior that a target folder holds; repositories keep all versions.
        message: Of the commit.

    Returns:
        The address of the commit, or the path of the folder.

    Raises:
        ArtifactError: If the posterior is damaged.
        DataError: If a folder or target is no good, the target is not empty, or rows would leave without ``with_data``.
        HubError: If the Hub cannot be reached or refuses.
        MissingExtraError: If the target is a repository and ``huggingface_hub`` is not installed.
    """
    from zoo.inference.posterior import load

    where, folder = place(target), Path(folder)
    api: Any = None
    if isinstance(where, Path):
        _check_target(where, folder, overwrite)
    else:
        api = _api()
    posterior = load(folder)
    if api is not None and not with_data and "stored" in artifacts.read_json(folder / _META)["data"]:
        raise DataError(
            f"'{folder}' stores the rows of '{posterior.data.name}', which would go to the Hub too; say so by "
            "--with-data (in Python with_data=True)"
        )
    with tempfile.TemporaryDirectory(prefix="zoo-push-") as scratch:
        files = _collect(posterior, folder, Path(scratch), str(where))
        if isinstance(where, Path):
            with outputs.whole(where, keep=False, resume=False) as stage:
                for path in files:
                    shutil.copyfile(path, stage / path.name)
            return str(where)
        return _commit(api, where, files, message or f"{posterior.name}, fitted to {posterior.data.name}", private)


def _commit(api: Any, repo: str, files: list[Path], message: str, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd

    with _talking(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(path.name, str(path)) for path in files]
        return str(api.create_commit(repo, additions, commit_message=message).commit_url)


def _check_target(target: Path, folder: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise DataError(f"'{target}' is a file; name a folder")
    if target.is_dir() and folder.is_dir() and target.samefile(folder):
        raise DataError(f"'{target}' is the folder of the posterior itself; name another")
    _check_empty(target, overwrite)
    card = target / _README
    if card.exists() and not _is_card(card):
        raise DataError(f"'{card}' is no model card of the zoo and would have to be replaced; move it away")


def _check_empty(folder: Path, overwrite: bool) -> None:
    outputs.recover(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"'{folder}' is not empty; allow it to be changed (--overwrite), or name another folder")


def _collect(posterior: Posterior, folder: Path, scratch: Path, target: str) -> list[Path]:
    """Put what is published together: posterior, report, and the model card as the repository's page."""
    from zoo.reports import CARD
    from zoo.reports.files import plain

    for name in (_META, _TENSORS):
        shutil.copyfile(folder / name, scratch / name)
    mine = outputs.ours(folder)
    if {folder / name for name in (*_REPORT, CARD)} <= set(mine):
        for name in (*_REPORT, CARD):
            shutil.copyfile(folder / name, scratch / name)
    try:
        document = json.loads((scratch / "report.json").read_text(encoding="utf-8"))
        current = document["fit"] == {**document["fit"], **plain(posterior.info)}
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not current:
        for name in (*_REPORT, CARD):
            (scratch / name).unlink(missing_ok=True)
        posterior.report(scratch / "report.html")
        document = json.loads((scratch / "report.json").read_text(encoding="utf-8"))
    card = (scratch / CARD).read_text(encoding="utf-8")
    use = f"## Use\n\n```console\n$ zoo pull {target} DIR\n$ zoo report DIR\n```\n"
    (scratch / _README).write_text(f"{front_matter(posterior, document)}\n{card}\n{use}", encoding="utf-8")
    return [scratch / name for name in (_META, _TENSORS, *_REPORT, _README)]


def front_matter(posterior: Posterior, document: Mapping[str, Any]) -> str:
    """Return what a model hub reads at the top of a card: library, tags, licence of the data, scores.

    Args:
        posterior: The fit.
        document: JSON of its report.

    Returns:
        YAML between two lines ``---``; lists and mappings in one line each.
    """
    data = posterior.data
    task = data.task or "other"
    hub_task = (
        f"tabular-{task}" if data.columns and task in ("classification", "regression") else task.replace("_", "-")
    )
    found: dict[str, Any] = {
        "library_name": "pyro-zoo",
        "tags": list(dict.fromkeys(["pyro-zoo", "pyro", "bayesian", "uncertainty", posterior.engine, posterior.name])),
    }
    if data.licence:
        short = next((name for text, name in _LICENCES.items() if data.licence.startswith(text)), None)
        found |= {"license": short} if short else {"license": "other", "license_name": data.licence}
    scores = document.get("scores") or {}
    split = next((name for name in ("test", "validation") if scores.get(name)), None)
    if split is not None:
        metrics = [
            {"type": _METRICS.get(name, name), "value": value, "name": f"{name.replace('_', ' ')} ({split})"}
            for name, value in scores[split].items()
            if isinstance(value, int | float)
        ]
        result = {
            "task": {"type": hub_task},
            "dataset": {"name": data.name, "type": re.sub(r"[^\w.-]+", "-", data.name), "split": split},
            "metrics": metrics,
        }
        found["metrics"] = [metric["type"] for metric in metrics]
        found["model-index"] = [{"name": f"{posterior.name} on {data.name}", "results": [result]}]
    lines = [f"{key}: {_yaml(value)}" for key, value in found.items()]
    return "\n".join(["---", *lines, "---", ""])


def _yaml(value: Any) -> str:
    """Return a value as YAML in one line: JSON, but for numbers like 1e-05, which YAML 1.1 takes for text."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    text = json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def _is_card(path: Path) -> bool:
    from zoo.reports.card import MARK

    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------------ pull
def pull(
    source: str, folder: str | os.PathLike[str], *, revision: str | None = None, overwrite: bool = False
) -> Posterior:
    """Fetch a posterior, check it as any artifact from elsewhere, and only then put it in place.

    Args:
        source: Where from, see :func:`place`.
        folder: Where the two files of the posterior go.
        revision: Branch, tag or commit of a repository.
        overwrite: Replace a posterior that ``folder`` holds.

    Returns:
        The posterior.

    Raises:
        ArtifactError: If what is there is no whole posterior; nothing is put in place.
        DataError: If a folder is no good, not empty, or cannot be written.
        HubError: If the Hub cannot be reached, refuses, or has no such repository, revision or file.
        MissingExtraError: If the source is a repository and ``huggingface_hub`` is not installed.
    """
    from zoo.inference.posterior import load

    where, folder = place(source), Path(folder)
    if isinstance(where, Path) and revision is not None:
        raise DataError(f"'{source}' is a folder, which has no revisions; leave out the revision")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is a file; name a folder")
    _check_empty(folder, overwrite)
    with outputs.whole(folder, keep=False, resume=False) as stage:
        try:
            if isinstance(where, Path):
                _copy(where, stage)
            else:
                _download(where, stage, revision)
            return load(stage)
        except ArtifactError as error:
            text = str(error).replace(str(stage), source)
            raise ArtifactError(f"{text}; '{source}' was not put in place") from error


def _copy(source: Path, stage: Path) -> None:
    for name in (_META, _TENSORS):
        path = source / name
        if not path.is_file():
            raise ArtifactError(f"'{source}' holds no posterior of the zoo: it has no {name}")
        try:
            shutil.copyfile(path, stage / name)
        except OSError as error:
            raise DataError(f"cannot copy '{path}': {error.strerror or error}") from error


def _download(repo: str, stage: Path, revision: str | None) -> None:
    """Download both files as of one commit; the description comes first, and decides what the other may be."""
    api = _api()
    with _talking(repo):
        info = api.model_info(repo, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in (_META, _TENSORS):
        if name not in sizes:
            raise ArtifactError(f"'{repo}' holds no posterior of the zoo: it has no {name}")
    if (sizes[_META] or 0) > artifacts.MAX_TEXT:
        raise ArtifactError(
            f"'{repo}/{_META}' has {sizes[_META]:,} bytes; a posterior's has {artifacts.MAX_TEXT:,} at most"
        )
    with tempfile.TemporaryDirectory(dir=stage.parent) as scratch:
        for name in (_META, _TENSORS):
            with _talking(repo):
                path = Path(api.hf_hub_download(repo, name, revision=info.sha, local_dir=scratch))
            os.replace(path, stage / name)
            if name == _META:
                about = artifacts.read_json(stage / name).get("files")
                expected = about.get(_TENSORS) if isinstance(about, dict) else None
                if isinstance(expected, dict) and sizes[_TENSORS] not in (None, expected.get("bytes")):
                    raise ArtifactError(
                        f"'{repo}/{_TENSORS}' has {sizes[_TENSORS]:,} bytes, but {_META} says {expected.get('bytes')}"
                    )


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "a repository on the Hub") from error
    # Read here, not where the library does, once at its import.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="pyro-zoo", library_version=__version__)


@contextmanager
def _talking(repo: str) -> Iterator[None]:
    """Turn what the library and its HTTP client raise, which differs between their versions, into one kind."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(lines)[:300] or type(error).__name__
        raise HubError(f"'{repo}' on the Hub: {text}") from error
