"""Limits for YAML that comes from others: a few lines can stand for billions of values.

Aliases (`*name`) and merge keys (`<<`) are counted as often as they occur, and nesting is limited, before any value is
made of them: PyYAML and OmegaConf would take hours, or end with an error of Python's about recursion.
"""

import yaml

DEEPEST = 40  # levels; a configuration has about five
_MOST_REPEATED = 10_000  # nodes that aliases add; OmegaConf makes about 30,000 values per second


class TooMuch(yaml.MarkedYAMLError):
    """YAML beyond the limits."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class BoundedLoader(yaml.SafeLoader):
    """Refuses deep nesting, and aliases that repeat too much or contain themselves. Raises TooMuch."""

    aliases = True
    """Whether there may be aliases."""
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if not self.aliases and self.check_event(yaml.AliasEvent):
            raise TooMuch("it contains an alias (*name)", self._mark())
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooMuch(f"it is nested more than {DEEPEST} levels deep", self._mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _mark(self) -> yaml.Mark | None:
        mark: yaml.Mark | None = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return mark

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        if node is not None:
            known: dict[int, tuple[int, int]] = {}
            values, levels = _expanded(node, known)
            if values - len(known) > _MOST_REPEATED:
                raise TooMuch(f"its aliases (*name) stand for more than {_MOST_REPEATED:,} values", node.start_mark)
            if levels > DEEPEST:
                raise TooMuch(f"its aliases are nested more than {DEEPEST} levels deep", node.start_mark)
        return node


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of nodes and of levels with each alias written out.

    `known` collects those of each node by its id, (0, 0) while within it. The recursion ends at `DEEPEST` levels, since
    an alias cannot come before what it stands for.
    """
    if id(node) in known:
        if known[id(node)] == (0, 0):
            raise TooMuch("an alias (*name) stands for what contains it", node.start_mark)
        return known[id(node)]
    known[id(node)] = (0, 0)
    values, levels = 1, 0
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            more, deep = _expanded(part, known)
            values, levels = values + more, max(levels, deep)
    known[id(node)] = values, levels + 1
    return known[id(node)]
