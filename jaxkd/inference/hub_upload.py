"""Uploads to the Hugging Face Hub, by its own client and with the user's token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxkd.errors import ConfigError, WeightSourceError
from jaxkd.weights.hub import parse


def check_repository(repository: str) -> str:
    """`repository`, if it has the form "USER/NAME".

    Raises:
      ConfigError: it has another form. WeightSourceError: there is no token, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    meant = parse(repository)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        meant = None
    if meant is None or meant.explicit or meant.revision:
        raise ConfigError(f'--push-to-hub="{repository}" is no name of a repository. Write USER/NAME.')
    if constants.HF_HUB_OFFLINE:
        raise WeightSourceError(
            f'HF_HUB_OFFLINE is set, so nothing can be uploaded to "{repository}". Unset it, or write the files only: '
            "--out=FOLDER/."
        )
    if not get_token():
        raise WeightSourceError(
            f'There is no token of the Hugging Face Hub on this machine to upload to "{repository}". Run '
            "`hf auth login`, or set HF_TOKEN to a token with the right to write."
        )
    return repository


def upload(files: Sequence[Path], repository: str, *, private: bool = False, message: str) -> str:
    """Uploads files as one commit, and makes the repository where it is missing.

    Args:
      files: of one folder; nothing else in it is uploaded.
      repository: "USER/NAME".
      private: makes a new repository private; one that exists must be private already.
      message: of the commit.

    Returns:
      The address of the repository.

    Raises:
      WeightSourceError: the Hub cannot be reached, or refuses it; or `private` and a public repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.logging import disable_propagation

    disable_propagation()  # the client prints its retries, and the root logger's handler would print them again
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and api.model_info(repository).private is False:
            raise WeightSourceError(
                f'--private was given, but "{repository}" exists and is public. Choose another name, make it private '
                "on the Hub, or leave --private out."
            )
        operations = [CommitOperationAdd(file.name, file) for file in files]
        api.create_commit(repository, operations, commit_message=message)
    except Exception as error:
        status = getattr(error, "response", None)
        # Without a connection the client passes on errors of its HTTP library, which has changed before.
        if (
            status is None
            and not isinstance(error, OSError)
            and not type(error).__module__.startswith(("httpx", "httpcore"))
        ):
            raise
        raise WeightSourceError(_reason(repository, error)) from error
    return str(address)


def _reason(repository: str, error: Exception) -> str:
    """One sentence on why an upload failed, and one on what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f'The Hugging Face Hub does not accept the token for "{repository}". Run `hf auth login` again.'
    if status in (403, 404):
        return (
            f'The token may not write to "{repository}". Use a token with the right to write, and for USER your '
            "name or that of an organisation of yours."
        )
    said = (str(error).strip().splitlines() or [""])[0][:200]
    if status is not None:
        return f'The Hugging Face Hub refused the upload to "{repository}" ({status}: {said}). Try again later.'
    return (
        f'The Hugging Face Hub could not be reached for "{repository}" ({type(error).__name__}: {said}). Check the '
        "network and run the command again, or write the files only: --out=FOLDER/."
    )
