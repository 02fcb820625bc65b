"""Runs the members of a study one after the other, and prints its table."""

from contextlib import suppress
from pathlib import Path

from trainer.base.config import Config, JsonObject
from trainer.base.errors import GearshiftError, RunInUse, SweepFailed
from trainer.base.signals import stop_request
from trainer.launching import train
from trainer.reporting.console import print_failure, say
from trainer.reporting.tables import make_console, make_table, without_repetition
from trainer.storage import run_folder
from trainer.storage.files import disk_errors
from trainer.storage.records import write_json
from trainer.storage.run_folder import COMPLETE, read_result
from trainer.studies.definition import Definition
from trainer.studies.ledger import Entry, Ledger
from trainer.studies.study import Member, Scores

TABLE = "results.json"


def run_study(definition: Definition) -> None:
    """Run every member that is not done: one that was interrupted or has failed is resumed.

    A member that fails is recorded, and the others go on. Raises SweepFailed (3) at the end if there was one, RunInUse
    if another process works on one. An interrupted member ends the program (SystemExit), as an interrupted run does.
    """
    ledger = definition.open_ledger()
    count, in_use = len(definition.members), list[str]()
    for number, (member, config) in enumerate(zip(definition.members, definition.configs, strict=True), 1):
        entries = ledger.entries()
        if waiting := [name for name in member.needs if entries[name].state != "done"]:
            say(f"{member.name}: is not run, because it needs {', '.join(waiting)}")
            continue
        try:
            _run(definition, ledger, member, config, f"{number} of {count}")
        except RunInUse as error:
            in_use.append(member.name)
            say(str(error))
    entries = ledger.entries()
    print_table(definition, entries)
    ours = [entries[member.name] for member in definition.members]
    if failed := [entry.name for entry in ours if entry.state == "failed"]:
        raise SweepFailed(f"{len(failed)} of {count} members failed: {', '.join(failed)}")
    if in_use:
        raise RunInUse(f"{definition.folder}: another process works on {', '.join(in_use)}")


def _run(definition: Definition, ledger: Ledger, member: Member, config: Config, number: str) -> None:
    folder = definition.folder / member.name
    if not (folder / run_folder.CONFIG).is_file():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_configuration(folder, config, [*definition.shared, *member.overrides])
    lock = run_folder.Lock(folder)
    try:
        if (found := read_result(folder)) and found["status"] in COMPLETE:
            say(f"{member.name}: {found['status']} already")
            ledger.update(member.name, **_outcome(found))
            return
        say(f"member {number}: {member.name}")
        ledger.update(member.name, state="running", error=None)
        result = train(config, folder, resume=True, is_trial=not definition.study.tests, lock=lock)
        if result.status == "interrupted":
            ledger.update(member.name, state="interrupted", status=result.status, exit_code=result.exit_code)
            raise SystemExit(result.exit_code)
        found = read_result(folder)
        assert found is not None  # a run that ends writes it
        ledger.update(member.name, **_outcome(found))
    except Exception as error:
        if (stop := stop_request.behind(error)) is not None:
            with suppress(Exception):  # the signal is what to report
                ledger.update(member.name, state="interrupted")
            raise stop from None
        print_failure(error)
        code = error.exit_code if isinstance(error, GearshiftError) else 1
        ledger.update(member.name, state="failed", exit_code=code, error=str(error) or type(error).__name__)
    finally:
        lock.release()


def _outcome(result: JsonObject) -> JsonObject:
    """What the ledger keeps of a result."""
    best = {} if result["best"] is None else result["best"]["metrics"]
    metrics = {name: float(value) for name, value in (best | (result["test"] or {})).items()}
    return {
        "state": "done", "status": result["status"], "exit_code": result["exit_code"], "monitor": result["monitor"],
        "metrics": metrics, "error": None,
    }  # fmt: skip


def scores_of(definition: Definition, entries: dict[str, Entry]) -> Scores:
    """Return the metrics of the members that are done, by name."""
    ours = (entries[member.name] for member in definition.members)
    return {entry.name: entry.metrics for entry in ours if entry.state == "done" and entry.metrics}


def print_table(definition: Definition, entries: dict[str, Entry]) -> None:
    """Print the metrics of each member and the study's summary, and write them to `results.json`."""
    scores = scores_of(definition, entries)
    summary, remark = definition.study.summary(scores), definition.study.remark(scores)
    write_json(
        definition.folder / TABLE,
        {
            "study": definition.option,
            "members": {m.name: {"state": entries[m.name].state, **scores.get(m.name, {})} for m in definition.members},
            "summary": summary,
            "remark": remark,
        },
    )
    names = without_repetition(next(iter(scores.values()), {}))
    table = make_table("", "state", *names, left=())
    for member in definition.members:
        values = scores.get(member.name, {})
        table.add_row(member.name, entries[member.name].state, *(_shown(values.get(name)) for name in names))
    for title, row in summary.items():
        table.add_row(title, "", *(_shown(row.get(name)) for name in names))
    console = make_console()
    console.print(table)
    if remark is not None:
        console.print(remark)
    console.print(f"study folder: {run_folder.shown(definition.folder)}; in it: {TABLE}, and a run folder per member")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def is_folder(folder: Path) -> bool:
    """Whether this is the folder of a study."""
    return (folder / run_folder.LEDGER).is_file()
