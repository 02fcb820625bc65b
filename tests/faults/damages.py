"""Damages of the files of a run folder, and commands that are tried on each of them in one process."""

import contextlib
import io
import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from tests.faults.harness import differences
from trainer import app
from trainer.base.signals import stop_request
from trainer.reporting.console import exit_on_error
from trainer.storage.checkpoint import load, save
from trainer.storage.files import seal
from trainer.storage.records import read_json, write_json, write_yaml
from trainer.storage.run_folder import read_configuration

Change = Callable[[Path, random.Random], object]
FILES = ("config.yaml", "overrides.yaml", "environment.json", "run.json", "metrics.jsonl", "events", "train.log",
         "checkpoints/last.pt", "checkpoints/last.previous.pt", "checkpoints/best.pt", "checkpoints/best.previous.pt",
         "result.json", "curves.png")  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


# --- what may happen to any file ----------------------------------------------------------------------------


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def change_a_digit(path: Path, draw: random.Random) -> None:
    """What leaves a valid file of most kinds."""
    content = bytearray(path.read_bytes())
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    place = draw.choice(digits)
    content[place] = 48 + (content[place] - 48 + draw.randint(1, 9)) % 10
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def lose_a_block(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    size = min(512, len(content) - start)
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


def lose_a_line(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def swap_two_lines(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = draw.randrange(max(1, len(lines) - 1))
    lines[place : place + 2] = reversed(lines[place : place + 2])
    path.write_bytes(b"".join(lines))


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def become_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def grow(path: Path, draw: random.Random) -> None:
    with path.open("ab") as file:
        file.write(draw.randbytes(100))


GENERAL = (flip_a_bit, change_a_digit, cut, lose_a_block, lose_a_line, swap_two_lines, empty, remove, become_a_folder,
           grow)  # fmt: skip


# --- what fits one kind of file -----------------------------------------------------------------------------


def text(content: str) -> Change:
    return lambda path, draw: path.write_text(content)


def without_a_checksum(path: Path, draw: random.Random) -> None:
    """Edited by someone who has removed the line that would tell."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if "sha256" not in line]
    path.write_text("".join(lines).replace("batch_size: 62", "batch_size: 61"))


def edited(path: Path, draw: random.Random) -> None:
    """Edited, with a checksum that is right."""
    write_yaml(path, read_configuration(path.parent) | {"seed": 4}, "edited")


def with_key(key: str, value: object) -> Change:
    return lambda path, draw: write_json(path, read_json(path) | {key: value})


def sealed(content: bytes) -> Change:
    return lambda path, draw: path.write_bytes(seal(content))


def archive(value: object) -> Change:
    def damage(path: Path, draw: random.Random) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        path.write_bytes(seal(buffer.getvalue()))

    return damage


def state_with(**changes: object) -> Change:
    return lambda path, draw: save(path, {**load(path), **changes}, keep_previous=True)


def state_without(key: str) -> Change:
    return lambda path, draw: save(path, {k: v for k, v in load(path).items() if k != key}, keep_previous=True)


NESTED_JSON, NESTED_YAML = text('{"a":' * 100_000), text("[" * 2000)
STATES = {
    "sealed garbage": sealed(b"no archive"),
    "a list": archive([1, 2]),
    "an empty state": archive({}),
    "another version": state_with(format=3),
    "a model of other shapes": state_with(model={"weight": torch.zeros(3)}),
    "a model that is a number": state_with(model=5),
    "a step that is text": state_with(step="many"),
    "no model": state_without("model"),
    "no run": state_without("run"),
    "no preprocessing": state_with(preprocessing={}),
}
SPECIAL: dict[str, dict[str, Change]] = {
    "config.yaml": {
        "an alias bomb": text(BOMB), "deep nesting": NESTED_YAML, "a list": text("- 1\n"),
        "a date": text("a: 2020-99-9"),
        "edited without a checksum": without_a_checksum, "edited": edited, "not UTF-8": sealed(b"\xff\xfe"),
    },
    "overrides.yaml": {
        "an alias bomb": text(BOMB), "deep nesting": NESTED_YAML, "a mapping": text("a: 1\n"), "numbers": text("[1]"),
    },
    "environment.json": {
        "deep nesting": NESTED_JSON, "NaN": text("NaN"), "a list": text("[]"), "an empty object": text("{}"),
        "other threads": with_key("threads", "x"),
    },
    "run.json": {
        "deep nesting": NESTED_JSON, "a list": text("[]"), "another run": with_key("id", "another"),
        "more": with_key("more", 1),
    },
    "metrics.jsonl": {"deep nesting": NESTED_JSON, "NaN": text("NaN\n" * 200)},
    "result.json": {
        "deep nesting": NESTED_JSON, "NaN": text("NaN"), "a list": text("[]"), "an empty object": text("{}"),
    },
    "checkpoints/last.pt": {
        **STATES, "no optimizer": state_without("optimizer"), "another optimizer": state_with(optimizer={"state": 3}),
        "other parts": state_with(stateful={"progress": {}}), "other offsets": state_with(offsets={"metrics": "x"}),
        "no ranks": state_with(ranks=[]),
    },
    "checkpoints/best.pt": STATES,
}  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """A change of one file; `seed` says where."""

    file: str
    name: str
    seed: int

    def apply(self, run: Path, other: Path) -> bool:
        """Damage the file in `run`; whether there is one. `other` is another run, whose files may take its place."""
        path = found(run, self.file)
        if path is None:
            return False
        if self.name == "of another run":
            shutil.copyfile(found(other, self.file) or path, path)
            return True
        draw = random.Random(f"{self.seed} {self.file} {self.name}")
        special = SPECIAL.get(self.file, {}).get(self.name)
        damage = special or next(change for change in GENERAL if change.__name__ == self.name)
        if path.stat().st_size or special:
            damage(path, draw)
        return True


def found(run: Path, file: str) -> Path | None:
    """The file of a run; `events` is the first event file."""
    paths = sorted(run.glob(f"{file}*" if file == "events" else file))
    return paths[0] if paths else None


def damages(seeds: range) -> Iterator[Damage]:
    """Every kind for every file that it fits; with several seeds those that fall at random, several times."""
    for file in FILES:
        for change in GENERAL:
            at_random = change in (flip_a_bit, change_a_digit, cut, lose_a_block)
            binary = not file.endswith(("yaml", "json", "jsonl", "log"))
            if binary and change in (change_a_digit, lose_a_line, swap_two_lines):
                continue
            for seed in seeds if at_random else seeds[:1]:
                yield Damage(file, change.__name__, seed)
        for name in ("of another run", *SPECIAL.get(file, {})):
            yield Damage(file, name, 0)


# --- trying them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a command line printed, and its exit code."""

    code: object
    out: str
    err: str


def train(*arguments: str) -> Said:
    """`train` in this process."""
    GlobalHydra.instance().clear()
    stop_request.signum = None
    logging.getLogger("trainer").handlers.clear()
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["train", *arguments]
        try:
            with exit_on_error():
                code = app.run(list(arguments))
        except SystemExit as leaving:
            code = leaving.code
    return Said(code, out.getvalue(), err.getvalue())


def problems(command: str, start: Path, reference: Path, other: Path, damage: Damage) -> list[str]:
    """What is wrong with the answer of `train COMMAND run` after a damage of a copy of `start`."""
    shutil.copytree(start, "run")
    run = Path("run")
    if not damage.apply(run, other):
        return []
    before = (run / "result.json").read_bytes() if (run / "result.json").is_file() else None
    said = train(command, "run")
    where = f"{command} after {damage}"
    if said.code != 0:
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        fine = (
            said.code in (2, 65, 74)
            and len(errors) == 1
            and "unexpected" not in said.err
            and "Traceback" not in said.err
        )
        return [] if fine else [f"{where}: {said.code} {said.err[-2000:]}"]
    if command == "evaluate":
        same = json.loads(said.out) == {"run": "run", **metrics_of(reference)}
        return [] if same else [f"{where}: {said.out}"]
    if before is not None:  # a complete run has nothing left to do
        return (
            [] if (run / "result.json").read_bytes() == before and "is complete" in said.out else [f"{where}: {said}"]
        )
    # matplotlib may lay out a picture differently when it has drawn others before
    lines = [line for line in differences(reference, run) if "test/confusion_matrix" not in line]
    if damage.file == "events":  # they are written again, without pictures and texts of the past
        lines = [line for line in lines if not (line.startswith("events") and "]: only " in line)]
    return [f"{where}: {line}" for line in lines]


@cache
def metrics_of(reference: Path) -> dict[str, float]:
    """What `evaluate` prints for the whole run."""
    found = json.loads(train("evaluate", str(reference)).out)
    return {name: value for name, value in found.items() if name != "run"}


def try_all(command: str, start: Path, reference: Path, other: Path, chosen: list[Damage], home: Path) -> None:
    """Print what is wrong after each damage, and how many were tried. For a process of its own."""
    import faults

    faults.install({"every_checkpoint": True})
    for number, damage in enumerate(chosen):
        # a folder for each: a thread of a run that was refused may write to it until the process ends
        folder = home / str(number)
        folder.mkdir()
        os.chdir(folder)
        for line in problems(command, start, reference, other, damage):
            print(line)
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen)} damages tried in {time.process_time():.0f} s")
