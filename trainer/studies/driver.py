"""Runs the members of a study one after the other, and prints its table."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from trainer.base.config import Config, JsonObject
from trainer.base.errors import ConfigurationError, GearshiftError, RunInUse, SweepFailed
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

    Several processes may run the same study: each takes the members that no other is working on.
    """
    for member in definition.members:
        run_folder.check_inside(definition.folder / member.name, definition.folder, "study")
    ledger = definition.open_ledger()
    _see_stopped(definition, ledger)
    count, in_use = len(definition.members), list[str]()
    for number, (member, config) in enumerate(zip(definition.members, definition.configs, strict=True), 1):
        stop_request.advice = run_folder.how_to_continue(definition.folder)
        entries = ledger.entries()
        if waiting := [name for name in member.needs if entries[name].state != "done"]:
            say(f"{member.name}: is not run, because it needs {', '.join(waiting)}")
            continue
        try:
            _run(definition, ledger, member, config, f"{number} of {count}")
        except RunInUse as error:
            in_use.append(member.name)
            say(str(error))
    stop_request.advice = None
    entries = print_table(definition, ledger)
    ours = [entries[member.name] for member in definition.members]
    if failed := [entry.name for entry in ours if entry.state == "failed"]:
        raise SweepFailed(f"{len(failed)} of {count} members failed: {', '.join(failed)}")
    if in_use := [name for name in in_use if entries[name].state != "done"]:
        raise RunInUse(f"{run_folder.shown(definition.folder)}: another process works on {', '.join(in_use)}")


def _see_stopped(definition: Definition, ledger: Ledger) -> None:
    """Correct the state of members whose process was killed while it ran them: nobody holds their folders."""
    known = ledger.entries()
    for entry in [known[member.name] for member in definition.members]:  # the ledger may name folders elsewhere
        if entry.state == "running":
            with suppress(RunInUse, ConfigurationError):  # what is wrong with a folder is told when it is its turn
                with disk_errors(definition.folder):
                    (definition.folder / entry.name).mkdir(exist_ok=True)
                lock = run_folder.Lock(definition.folder / entry.name)
                try:
                    ledger.stopped(entry.name)
                finally:
                    lock.release()


def _run(definition: Definition, ledger: Ledger, member: Member, config: Config, number: str) -> None:
    folder = definition.folder / member.name
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = run_folder.Lock(folder)  # first: another process may be about to begin the same member
        try:
            _run_locked(definition, ledger, member, config, number, lock)
        finally:
            lock.release()
    except RunInUse:
        raise
    except Exception as error:
        if (stop := stop_request.behind(error)) is not None:
            raise stop from None
        print_failure(error)
        code = error.exit_code if isinstance(error, GearshiftError) else 1
        ledger.update(member.name, state="failed", exit_code=code, error=str(error) or type(error).__name__)


def _run_locked(
    definition: Definition, ledger: Ledger, member: Member, config: Config, number: str, lock: run_folder.Lock
) -> None:
    folder = definition.folder / member.name
    if not (folder / run_folder.CONFIG).is_file():
        run_folder.write_configuration(folder, config, [*definition.shared, *member.overrides])
    if (found := read_result(folder)) and found["status"] in COMPLETE:
        say(f"{member.name}: {found['status']} already")
        ledger.update(member.name, **_outcome(found))
        return
    say(f"member {number}: {member.name}")
    with _noting_a_stop(ledger, member.name):
        ledger.update(member.name, state="running", error=None)
        result = train(config, folder, resume=True, is_trial=not definition.study.tests, lock=lock)
        if result.status == "interrupted":
            ledger.update(member.name, state="interrupted", status=result.status, exit_code=result.exit_code)
            raise SystemExit(result.exit_code)
        found = read_result(folder)
        assert found is not None  # a run that ends writes it
        ledger.update(member.name, **_outcome(found))


@contextmanager
def _noting_a_stop(ledger: Ledger, name: str) -> Iterator[None]:
    """Context manager that leaves no running member in the ledger when a signal ends the program in its body."""
    stop_request.at_once = partial(ledger.stopped, name, patience=1.0)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) or stop_request.behind(error) is not None:
            with suppress(Exception):  # the signal is what to report
                ledger.stopped(name)
        raise
    finally:
        stop_request.at_once = None


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


def print_table(definition: Definition, ledger: Ledger) -> dict[str, Entry]:
    """Print the metrics of each member and the study's summary, and write them to `results.json`; return the entries
    that they are from."""
    with ledger.unchanging() as entries:  # another process must not write a later table meanwhile
        scores = scores_of(definition, entries)
        summary, remark = definition.study.summary(scores), definition.study.remark(scores)
        members = {m.name: {"state": entries[m.name].state, **scores.get(m.name, {})} for m in definition.members}
        table: JsonObject = {"study": definition.option, "members": members, "summary": summary, "remark": remark}
        write_json(definition.folder / TABLE, table)
    _print(definition, entries, scores, summary, remark)
    return entries


def _print(
    definition: Definition,
    entries: dict[str, Entry],
    scores: Scores,
    summary: dict[str, dict[str, float]],
    remark: str | None,
) -> None:
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
