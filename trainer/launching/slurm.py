"""The variables of a Slurm step, translated into those of torchrun."""

import os
import re

from trainer.base.errors import ConfigurationError

# below the range from which systems assign ports by themselves (on Linux from 32768), and below torchrun's own
_FIRST_PORT, _PORTS = 20_000, 9_000
STEP = "GEARSHIFT_SLURM_STEP"  # the environment variable with the job and the step that ranks belong to


def see_slurm() -> None:
    """Translate Slurm's environment variables into torchrun's, in an srun step with several tasks.

    Raises ConfigurationError on the first task if the nodes have different numbers of tasks; the others exit.
    """
    env = os.environ
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE", f"{tasks // nodes}(x{nodes})")
    if len(set(re.sub(r"\(x\d+\)", "", per_node).split(","))) > 1 or tasks % nodes:
        if env["SLURM_PROCID"] != "0":
            raise SystemExit(ConfigurationError.exit_code)
        raise ConfigurationError(
            f"srun: the nodes have different numbers of tasks ({per_node}); every node must have as many: "
            f"srun --nodes={nodes} --ntasks-per-node={-(-tasks // nodes)}"
        )
    node, local = int(env.get("SLURM_NODEID", "0")), int(env["SLURM_LOCALID"])
    # by node, as torchrun counts, and not SLURM_PROCID: `srun --distribution=cyclic` deals the tasks to the nodes
    env["RANK"], env["WORLD_SIZE"] = str(node * (tasks // nodes) + local), str(tasks)
    env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"] = str(local), str(tasks // nodes)
    hosts = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "localhost"))
    env.setdefault("MASTER_ADDR", first_host(hosts) if nodes > 1 else "127.0.0.1")
    job, step = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_STEP_ID", "0"))
    env[STEP] = f"{job}.{step}"
    env.setdefault("MASTER_PORT", str(_FIRST_PORT + (job + 97 * step) % _PORTS))


def first_host(nodes: str) -> str:
    """Return the first host of a list such as `a[01-04,07]b,c`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None  # it matches the empty text, too
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])
