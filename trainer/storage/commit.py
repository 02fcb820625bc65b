"""The commit of the current folder, without running what the repository names.

The settings of a repository can name programs that `git status` starts (file system monitors, filters, hooks). A
repository may have come with the data of others, so `git status` is asked only where the settings hold none.
"""

import os
import re
import subprocess

from trainer.base.config import JsonObject

# settings of a repository that name no program
_PLAIN = re.compile(
    r"core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|precomposeunicode|symlinks|autocrlf|eol)"
    r"|user\.(name|email)|init\.defaultbranch|remote\..*\.(url|pushurl|fetch)|submodule\..*\.(url|active)|submodule\.active"
    r"|branch\..*\.(remote|merge|rebase|description)|(pull|push)\.(rebase|ff|default|autosetupremote)"
    r"|extensions\.objectformat"
)
_OPTIONS = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def describe_repository() -> JsonObject | None:
    """Return the commit of the current folder, and whether there are uncommitted changes: null if unknown."""
    try:
        commit = _git("rev-parse", "HEAD")
        if commit is None:
            return None
        settings = _git("config", "--list", "--show-scope", "--name-only", "-z")
        changed = None
        if settings is not None and _are_plain(settings):
            changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _are_plain(settings: str) -> bool:
    """Whether all settings of the repository are in `_PLAIN`; those of the user and of the system are trusted."""
    fields = settings.split("\0")
    scoped = zip(fields[::2], fields[1::2], strict=False)
    return all(scope in ("system", "global", "command") or _PLAIN.fullmatch(name) for scope, name in scoped)


def _git(*words: str) -> str | None:
    """What git prints; None if it fails."""
    environment = os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *_OPTIONS, *words], capture_output=True, text=True, timeout=5, env=environment, errors="replace"
    )
    return None if done.returncode else done.stdout.strip()
