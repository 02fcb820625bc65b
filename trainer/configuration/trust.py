"""The allow list: what a configuration may name without being trusted by the user.

A user trusts a package with `--trust` or GEARSHIFT_TRUST; everything defined in it is called, and the result is checked
against the contract of its group, of a node inside another one against the annotation of the argument that it becomes,
and, for an operation of ours or a dataset in ours, its methods. Without an annotation there is nothing to check: only
the class that takes it knows. Everything else must be made for its group: a class of ours, of the modules in
`_LISTED`, or a function that is a factory of models. A configuration, or a folder, never extends the list.
"""

import inspect
from collections.abc import Iterable
from functools import cache
from pkgutil import resolve_name

from trainer.base.config import Target
from trainer.base.trusted_packages import users_packages
from trainer.configuration.groups import GROUPS

# names that a configuration may write, apart from those of the groups' own packages
_NAMES = (
    "trainer.examples", "torch.nn", "torch.optim", "torchvision.models", "torchvision.ops", "timm.models",
    "timm.create_model", "timm.optim", "pytorch_optimizer",
)  # fmt: skip
# base class -> modules in which a subclass of it must be defined; most constructors there only compute
_LISTED = {
    "torch.nn.Module": ("torch.nn.modules", "torchvision.models", "torchvision.ops", "timm.models"),
    "torch.optim.Optimizer": ("torch.optim", "timm.optim", "pytorch_optimizer"),
}
# of the groups whose contract is wider than the base of the library's classes
_BASES = {"model": "torch.nn.Module", "optimizer": "torch.optim.Optimizer", "study": "trainer.studies.study.Study"}
_STUDIES = "trainer.studies"  # where ours are defined; a study is no component, and not in the table of groups
# methods of the nodes inside a group's node, if those are something else: operations, and map-style datasets
_PARTS = {"augmentation": ("draw", "__call__"), "data": ("__len__", "__getitem__")}


def lies_in(module: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is, or lies in, one of these packages."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_users(name: str) -> bool:
    """Whether a dotted name lies in a package that the user trusts."""
    return lies_in(name, users_packages())


def may_be_named(target: str) -> bool:
    """Whether a dotted name may be imported at all; `refusal` decides on what is found."""
    if is_users(target):
        return True
    is_private = any(part.startswith("_") for part in target.split("."))
    return not is_private and lies_in(target, (*_ours(), *_NAMES))


def hint(target: object) -> str:
    """How the user can trust a name, or nothing if it is no name."""
    package = str(target).partition(".")[0]
    return f"; if you trust its code: --trust {package}" if package.isidentifier() else ""


def refusal(found: Target, group: str, is_part: bool) -> str | None:
    """Why a class or function is not called for a group, or for a node inside it; None if it is.

    Imports the modules of its contract.
    """
    module = found.__module__
    if is_users(module):
        return None
    if not lies_in(module, (*_ours(), *_NAMES, *(m for modules in _LISTED.values() for m in modules))):
        return f"comes from {module}, which is not trusted{hint(module)}"
    own = lies_in(module, _packages(group))
    if not inspect.isclass(found):
        return None if _is_factory(found, group, own) else _no_factory(module)
    base = None if is_part else _BASES.get(group)
    if base is not None and not issubclass(found, resolve_name(base)):
        return f"cannot be used as {group}: it is no {base}"
    missing = _missing(found, group, is_part)
    if own and not missing:
        return None
    if _is_listed(found, {_BASES.get(group), *(["torch.nn.Module"] if is_part else [])}):
        return None
    if missing:
        return f"cannot be used as {group}: it has no {', '.join(missing)}"
    return f"cannot be used as {group}: built in are {_built_in(group)}{hint(module)}"


def _ours() -> tuple[str, ...]:
    return (*(group.package for group in GROUPS.values()), _STUDIES)


def _packages(group: str) -> tuple[str, ...]:
    own = {"study": (_STUDIES,)} | {name: (row.package,) for name, row in GROUPS.items()}
    return (*own.get(group, ()), "trainer.examples")


def _missing(found: Target, group: str, is_part: bool) -> list[str]:
    """Required members that a class does not have; values of our own classes may be set by their constructors."""
    if group not in GROUPS:
        return []
    from trainer.contracts import required_members

    contract = resolve_name(GROUPS[group].contract)
    if is_part and group in _PARTS:
        names: Iterable[str] = _PARTS[group]
    elif inspect.isclass(found) and contract in inspect.getmro(found):
        return []
    else:
        names = required_members(contract)
        if lies_in(found.__module__, _packages(group)):
            names = [name for name in names if name in vars(contract)]
    return [name for name in names if name not in dir(found)]


def lacking(part: object, group: str) -> list[str]:
    """Methods that what a node inside a group's node returned does not have, if one of ours takes it."""
    return [name for name in _PARTS.get(group, ()) if name not in dir(part)]


def _is_listed(found: Target, bases: Iterable[str | None]) -> bool:
    return any(
        inspect.isclass(found) and issubclass(found, resolve_name(base)) and lies_in(found.__module__, _LISTED[base])
        for base in bases
        if base in _LISTED
    )


def _is_factory(found: Target, group: str, own: bool) -> bool:
    """Whether a function returns models: one of ours by its annotation, one of a library by the library's list."""
    if own and group in GROUPS:
        returned = inspect.signature(found, eval_str=True).return_annotation
        contract = resolve_name(_BASES.get(group) or GROUPS[group].contract)
        return inspect.isclass(returned) and issubclass(returned, contract)
    if group != "model":
        return False
    if lies_in(found.__module__, ["torchvision.models"]):
        return found in _factories_of_torchvision()
    if lies_in(found.__module__, ["timm.models"]):
        models = resolve_name("timm.models")
        name = found.__name__
        return found is models.create_model or (models.is_model(name) and models.model_entrypoint(name) is found)
    return False


@cache
def _factories_of_torchvision() -> frozenset[Target]:
    models = resolve_name("torchvision.models")
    return frozenset(models.get_model_builder(name) for name in models.list_models())


def _no_factory(module: str) -> str:
    return (
        "is a function that is no factory: built in are the functions of our models, and the models of"
        f" torchvision.models and timm.models{hint(module)}"
    )


def _built_in(group: str) -> str:
    base = _BASES.get(group)
    if base is None:
        return f"those of {_packages(group)[0]}"
    return f"subclasses of {base} in {', '.join((_packages(group)[0], *_LISTED.get(base, ())))}"
