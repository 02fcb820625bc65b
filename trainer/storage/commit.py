"""The commit of the current folder, without running what the repository names.

The settings of a repository can name programs that `git status` starts (file system monitors, filters, hooks). A
repository may have come with the data of others, so `git status` is asked only where the settings hold none, or only
filters (such as those of Git LFS), which are switched off for it. A filtered file that was only touched then looks
changed: without any change the folder is clean, with one it is unknown.
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
_FILTER = re.compile(r"(filter\.[\w-]+)\.(clean|smudge|process|required)|lfs\.repositoryformatversion")
_OPTIONS = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def describe_repository() -> JsonObject | None:
    """Return the commit of the current folder, and whether there are uncommitted changes: null, and why, if unknown."""
    try:
        commit = _git("rev-parse", "HEAD")
        if commit is None:
            return None
        settings = _git("config", "--list", "--show-scope", "--name-only", "-z")
        names = None if settings is None else _of_the_repository(settings)
        if names is None or any(_FILTER.fullmatch(name) is None for name in names):
            return _unknown(commit, "its git settings may name programs, which are not run")
        filters = {match[1] for name in names if (match := _FILTER.fullmatch(name)) and match[1]}
        off = [f"{name}.{key}=" for name in sorted(filters) for key in ("clean", "smudge", "process")]
        off += [f"{name}.required=false" for name in sorted(filters)]
        options = [word for setting in off for word in ("-c", setting)]
        changed = _git(*options, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if changed is None:
        return _unknown(commit, "git status failed")
    if changed and filters:
        return _unknown(commit, f"files differ, perhaps only because {', '.join(sorted(filters))} is not run")
    return {"commit": commit, "dirty": bool(changed)}


def _unknown(commit: str, reason: str) -> JsonObject:
    return {"commit": commit, "dirty": None, "reason": reason}


def _of_the_repository(settings: str) -> list[str]:
    """The names of its settings that are not in `_PLAIN`; those of the user and of the system are trusted."""
    fields = settings.split("\0")
    scoped = zip(fields[::2], fields[1::2], strict=False)
    return [n for scope, n in scoped if scope not in ("system", "global", "command") and not _PLAIN.fullmatch(n)]


def _git(*words: str) -> str | None:
    """What git prints; None if it fails."""
    environment = os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *_OPTIONS, *words], capture_output=True, text=True, timeout=5, env=environment, errors="replace"
    )
    return None if done.returncode else done.stdout.strip()
