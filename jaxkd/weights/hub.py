"""Sources of weights: local paths, and ids of the Hugging Face Hub, fetched by its own client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxkd.errors import WeightSourceError, did_you_mean
from jaxkd.models import list_models
from jaxkd.weights.readers import INDEX, is_weights_name, not_found, shards

# In the order of preference; `open_clip_model` is how CLIP towers are kept where timm has no copy of its own.
FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", "open_clip_model.safetensors")

_ID = re.compile(r"(?P<scheme>hf[-_]hub:)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub, e.g. "hf-hub:timm/cait_s24_224.fb_dist_in1k@main"."""

    repo: str  # "owner/name"
    revision: str | None  # branch, tag or commit; None for the default branch
    explicit: bool  # whether the prefix "hf-hub:" was written, so that it cannot be meant as a path


def parse(source: str) -> HubId | None:
    """`source` as a Hub id, or None if it does not have the form of one."""
    match = _ID.fullmatch(source)
    return None if match is None else HubId(match["repo"], match["revision"], bool(match["scheme"]))


def known_ids() -> list[str]:
    """Hub ids of the weights that timm publishes for the networks of jaxkd."""
    # The quick-GELU networks read the very weights of those without; timm names only the networks apart.
    return list(dict.fromkeys(f"timm/{name.replace('_quickgelu', '')}" for name in list_models("*.*")))


def fetch(hub_id: HubId) -> Path:
    """The local copy of the weights of `hub_id`, downloaded if the cache does not hold it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem: Exception | None = None
    only_cache = False
    for name in FILES:
        options: dict[str, Any] = {"revision": hub_id.revision, "local_files_only": only_cache}
        try:
            path = Path(hf_hub_download(hub_id.repo, name, **options))
            if name.endswith(INDEX):
                for shard in shards(path):
                    hf_hub_download(hub_id.repo, shard, **options)
            return path
        except WeightSourceError:
            raise
        except LocalEntryNotFoundError as error:  # neither in the cache nor reachable
            problem, only_cache = problem or error, True  # waiting for the network once is enough
        except EntryNotFoundError as error:  # the repository has no file of this name
            problem = error
        except Exception as error:  # the repository itself is out of reach: another file name would not help
            problem = error
            break
    raise WeightSourceError(_message(hub_id, problem)) from problem


def _message(hub_id: HubId, error: Exception | None) -> str:
    """An error text: the file that is missing, why, and how to get it without the Hub's client."""
    from huggingface_hub import constants, errors

    repo, revision = hub_id.repo, hub_id.revision or "main"
    known = known_ids()
    near = did_you_mean(repo, known) if repo.startswith("timm/") and repo not in known else ""
    if constants.HF_HUB_OFFLINE:
        why = f'HF_HUB_OFFLINE is set, and the cache "{constants.HF_HUB_CACHE}" does not hold them.'
    elif isinstance(error, errors.GatedRepoError):
        why = f"Access is restricted: accept the terms on https://huggingface.co/{repo} and run `hf auth login`."
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "There is no such repository, or it is private (`hf auth login`)."
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f'The repository has no revision "{revision}".'
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = f'The Hub cannot be reached, and the cache "{constants.HF_HUB_CACHE}" does not hold them.'
    elif isinstance(error, errors.EntryNotFoundError):
        why = f"The repository has none of the files {', '.join(FILES)}."
    else:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    option = f" --revision {hub_id.revision}" if hub_id.revision else ""
    return (
        f'The weights "{repo}" could not be fetched from the Hugging Face Hub.{near} {why} Where there is a network, '
        f"run `hf download {repo} {FILES[0]}{option} --local-dir DIR`, or save "
        f"https://huggingface.co/{repo}/resolve/{revision}/{FILES[0]}, and give the path of that file instead."
    )


def locate(source: str | Path) -> Path:
    """The local path of a source, fetched from the Hub if it is an id; see `weights.load` on telling the two apart.

    Args:
      source: a path, or an id such as "timm/cait_s24_224.fb_dist_in1k".

    Returns:
      A path that exists; of an id, below the cache of the Hub.

    Raises:
      WeightSourceError: an empty source, neither a path nor an id, or a file that cannot be fetched.
    """
    text = str(source)
    if not text:
        raise WeightSourceError(
            "The source of the weights is empty. Give a path or a Hugging Face id such as "
            '"timm/cait_s24_224.fb_dist_in1k".'
        )
    path = Path(text).expanduser()
    if path.exists():
        return path
    meant = hub_id(source)
    if meant is not None:
        return fetch(meant)
    raise WeightSourceError(not_found(text, _why_not_the_hub(text, parse(text) if isinstance(source, str) else None)))


def hub_id(source: str | Path) -> HubId | None:
    """The Hub id that a source means, or None where it means a path; see `weights.load`.

    Args:
      source: text; a `Path` never means an id.

    Returns:
      The repository with its revision and file, where the id names them.
    """
    if not isinstance(source, str) or not source or Path(source).expanduser().exists():
        return None
    meant = parse(source)
    return meant if meant is not None and (meant.explicit or not _is_spelt_like_a_path(source)) else None


def published_name(source: str | Path) -> str:
    """`name.tag` of weights that timm publishes: "timm/cait_s24_224.fb_dist_in1k" -> "cait_s24_224.fb_dist_in1k".

    Args:
      source: as of `weights.load`.

    Returns:
      "" where `source` is none of them.
    """
    meant = hub_id(source)
    return meant.repo.removeprefix("timm/") if meant is not None and meant.repo in known_ids() else ""


def _is_spelt_like_a_path(text: str) -> bool:
    return text[0] in "./~" or is_weights_name(text) or Path(text).parent.is_dir()


def _why_not_the_hub(text: str, hub_id: HubId | None) -> str:
    """Why a missing path was not looked for on the Hub, and what to write if that was meant."""
    if hub_id is not None:
        why = (
            "is spelt like a path" if not Path(text).parent.is_dir() else f'lies below the folder "{Path(text).parent}"'
        )
        return (
            f'It was not looked for on the Hugging Face Hub because it {why}; write "hf-hub:{text}" if that is meant.'
        )
    name, _, tag = text.partition(".")
    known = [full for full in list_models("*.*") if full.split(".")[0] == name]
    if known:
        full = text if tag and text in known else known[0]
        return f'"{text}" names a network, not its weights; those are on the Hub as "timm/{full}".'
    return "It is not a Hugging Face id, which has the form owner/name."
