"""Pushes an export to a repository on the Hugging Face hub.

The repository is private unless asked otherwise. All files come in one commit, so that a connection
that is lost leaves no half model there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from cpo_ds.config import Config
from cpo_ds.errors import UserError, one_line
from cpo_ds.storage.hub_names import is_unreachable, looks_like_path, offline_variable

# The files that an export consists of; nothing else is pushed.
_PUSHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md")
_CARD, _ADAPTER = "README.md", "adapter_config.json"
# Files in which a path of this machine would be a name, not a token of the vocabulary.
_CHECKED = (_CARD, _ADAPTER, "config.json", "generation_config.json", "tokenizer_config.json")
_PATH = re.compile(r"(?<![\w.:/~>])(?:/|~/)[\w.+-]+/[\w./+-]*")
_OF_THE_HUB = ".gitattributes"  # in every new repository
_MAY_WRITE = ("admin", "write", "contributor")  # roles in an organization


class Push:
    """A push to a repository, checked as far as the hub tells beforehand.

    `name` may lack its owner, who is then the user. `base` is the base model's name on the hub.
    """

    def __init__(
        self, name: str, *, public: bool = False, replace: bool = False, base: str | None = None
    ) -> None:
        """Raises `UserError` for a wrong name or token, and for a repository in use."""
        for given, option in ((name, "--push"), (base, "--base")):
            if given is not None:
                _check_name(given, option)
        if (variable := offline_variable()) is not None:
            raise UserError(f"--push asks the Hugging Face hub, but {variable} is set; unset it.")
        if get_token() is None:
            raise UserError("--push needs a log-in: run `hf auth login`, or set HF_TOKEN.")
        self._api = HfApi()
        self._public, self._base = public, base
        try:
            self.repo = _writable_name(name, self._api.whoami())
            self._old_files = _files_of(self._api, self.repo)
        except Exception as error:
            raise UserError(f"--push {name}: {_why(error)}") from None
        if self._old_files and not replace:
            raise UserError(
                f"--push: {self.repo} is there already, with {len(self._old_files)} file(s), such "
                f"as {self._old_files[0]}; give another name, or --replace to put the export in "
                "their place (its history keeps them)."
            )

    def check_base(self, config: Config, *, as_adapter: bool) -> None:
        """Raises `UserError` for an adapter whose base only this machine has."""
        name = config.model.name_or_path
        is_local = Path(name).is_dir() or looks_like_path(name)
        if self._base is None and not is_local:
            self._base = name
        if self._base is None and as_adapter:
            raise UserError(
                f"--push: the adapter belongs to {name}, a folder that others do not have; give "
                "the base's name on the hub by --base, or push a full model by --merge."
            )

    def send(self, folder: Path) -> str:
        """Pushes a written export; returns the address of the repository. Raises `UserError`."""
        contents = dict(self._contents(folder))
        additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
        gone = [CommitOperationDelete(n) for n in self._old_files if n not in contents]
        try:
            url = self._api.create_repo(self.repo, private=not self._public, exist_ok=True)
            self._api.create_commit(
                self.repo, [*additions, *gone], commit_message="Export of a run by cpo_ds"
            )
        except Exception as error:
            raise UserError(
                f"the export could not be pushed to {self.repo}: {_why(error)} It is in {folder}; "
                "the same command again goes on with what the hub has."
            ) from None
        return str(url)

    def _contents(self, folder: Path) -> Iterator[tuple[str, bytes | str]]:
        """The files to push: their paths, or texts that name the base as others know it.

        Raises `UserError` for a path of this machine in one of them.
        """
        files = {file for pattern in _PUSHED for file in folder.glob(pattern)}
        for file in sorted(files):
            if file.name not in _CHECKED:
                yield file.name, str(file)
                continue
            text = self._with_base(file.name, file.read_text(encoding="utf-8"))
            if path := _PATH.search(text):
                raise UserError(
                    f"--push: {file} names the path {path.group()} of this machine, so nothing was "
                    "pushed; write a name in its place, and push the folder by `hf upload "
                    f"{self.repo} {folder}`."
                )
            yield file.name, text.encode()

    def _with_base(self, name: str, text: str) -> str:
        if name == _ADAPTER:
            settings = json.loads(text) | {"base_model_name_or_path": self._base}
            return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if name == _CARD:
            _, front, rest = text.split("---\n", 2)
            return f"---\n{_front_matter(front, self._base)}---\n{rest}"
        return text


def _front_matter(text: str, base: str | None) -> str:
    """A card's front matter with the base's name on the hub, or without any."""
    values = yaml.safe_load(text)
    del values["base_model"]
    return yaml.safe_dump(({"base_model": base} if base else {}) | values, sort_keys=False)


def _check_name(name: str, option: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{option} {name} is no name on the Hugging Face hub; write owner/name, with letters, "
            "digits, and single - _ . between them."
        ) from None


def _writable_name(name: str, who: dict[str, Any]) -> str:
    """The full name of a repository. Raises `UserError` if the token's user may not write there."""
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise UserError(
            "the token may only read; make one that may write at https://huggingface.co/settings/"
            "tokens, and log in with it (`hf auth login`)."
        )
    owner, slash, _ = name.partition("/")
    if not slash:
        return f"{who['name']}/{name}"
    roles = {org["name"]: org.get("roleInOrg", "write") for org in who.get("orgs", [])}
    if roles.get(owner, "none") in _MAY_WRITE or owner == who["name"]:
        return name
    raise UserError(
        f"the token's user {who['name']} may not write for {owner}; give {who['name']}/... or an "
        f"organization of theirs ({', '.join(roles) or 'there is none'})."
    )


def _files_of(api: HfApi, repo: str) -> list[str]:
    """The files of a repository, none if it does not exist or is empty."""
    try:
        return [file for file in api.list_repo_files(repo) if file != _OF_THE_HUB]
    except RepositoryNotFoundError:
        return []


def _why(error: Exception) -> str:
    """Why the hub did not do what it was asked, with the way out: a sentence."""
    if isinstance(error, UserError):
        return str(error)
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if code == 401:
        return "the hub does not know the token; run `hf auth login`, or set HF_TOKEN to a new one."
    if code == 403:
        return "the token may not write there; give it that right, or name another repository."
    if is_unreachable(error):
        return (
            "the Hugging Face hub does not answer, or the connection was lost; check the network "
            "and HF_ENDPOINT."
        )
    return f"{type(error).__name__}: {one_line(error).rstrip('.')}."
