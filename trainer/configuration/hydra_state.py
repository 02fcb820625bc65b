"""Lets us use Hydra inside a program that uses Hydra itself, such as one with `@hydra.main`.

Hydra keeps its state in singletons: the application, its job's name, and the version whose behaviour it has.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

_KINDS: tuple[type, ...] = (GlobalHydra, VersionBase, JobRuntime)
_SLUG = "slug"
_LOCK = threading.RLock()


@contextmanager
def own_hydra() -> Iterator[None]:
    """Context manager in which Hydra has no application yet; afterwards it is as before. One thread at a time."""
    with _LOCK:
        instances, slug = Singleton._instances, BaseContainer._resolvers.get(_SLUG)
        before = {kind: instances.pop(kind) for kind in _KINDS if kind in instances}
        try:
            yield
        finally:
            for kind in _KINDS:
                instances.pop(kind, None)
            instances.update(before)
            if slug is not None:  # of the program's own
                OmegaConf.clear_resolver(_SLUG)
                BaseContainer._resolvers[_SLUG] = slug
