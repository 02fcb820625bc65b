"""The lottery ticket experiment."""

from pathlib import Path

from trainer.base.checks import check_number, check_one_of, check_whole
from trainer.studies.study import Member, Scores, Study


class LotteryTicket(Study):
    """Trains a network, prunes it by magnitude, rewinds what is left to its first weights and trains that.

    Members: `dense`, the whole network; `ticket`, the share of its weights that became largest, from the same first
    weights and with the same order of the data; `random_mask`, as many weights of each layer, drawn at random;
    `redrawn_weights`, the ticket's mask with other first weights. Biases and norms are kept. `share`: of the weights
    that are left, in (0, 1); `rounds` >= 1: train, prune and rewind that often, by the same factor each time; `scope`:
    `layer` keeps this share of each layer, `global` of all weights together. Source: UVic PHYS 555; Frankle & Carbin
    2019. Raises ValueError for other values.
    """

    tests = True

    def __init__(self, share: float = 0.2, rounds: int = 1, scope: str = "layer") -> None:
        self.share = check_number("share", share, 0, 1, above=True, below=True)
        self.rounds = check_whole("rounds", rounds, 1)
        check_one_of("scope", scope, ("layer", "global"))
        self.scope = scope

    def members(self, folder: Path) -> list[Member]:
        members = [Member("dense", ())]
        for number in range(1, self.rounds):
            members.append(self._pruned(f"round={number}", folder, members[-1].name, number))
        before = members[-1].name
        return [
            *members,
            self._pruned("ticket", folder, before),
            self._pruned("random_mask", folder, before, mask="random"),
            self._pruned("redrawn_weights", folder, before, redraw=True),
        ]

    def _pruned(
        self, name: str, folder: Path, source: str, number: int = 0, mask: str = "magnitude", redraw: bool = False
    ) -> Member:
        share = self.share ** (number / self.rounds) if number else self.share
        path = str(folder / source).replace("\\", "\\\\").replace("'", "\\'")
        words = f"source: '{path}', share: {share!r}, scope: {self.scope}, mask: {mask}, redraw: {str(redraw).lower()}"
        return Member(name, (f"prune={{{words}}}",), (source,))

    def summary(self, scores: Scores) -> dict[str, dict[str, float]]:
        """What the ticket has more than each of the others."""
        ticket = scores.get("ticket")
        if ticket is None:
            return {}
        others = {name: scores[name] for name in ("dense", "random_mask", "redrawn_weights") if name in scores}
        return {
            f"ticket - {name}": {key: ticket[key] - value for key, value in values.items() if key in ticket}
            for name, values in others.items()
        }

    def remark(self, scores: Scores) -> str | None:
        return f"one run each: repeat with other seeds before concluding; {self.share:.0%} of the weights are left"
