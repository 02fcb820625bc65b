"""Sub-commands, one module each with `main(arguments) -> exit code`. Only the first word can be a sub-command."""

COMMANDS = {
    "plan": "check and show everything without training; --show draws the augmentation",
    "resume": "continue a run where it stopped: same folder, same bits",
    "repeat": "run the configuration of a run again in a new folder",
    "evaluate": "metrics of the best weights of runs; tta=flip|ten_crop|multi_scale averages over views",
}
USAGE = {
    "plan": "train plan [key=value ...] [--show], or train plan -m key=a,b ... for the trials of a sweep",
    "resume": "train resume RUN [epochs=N] [steps=N] [schedule_length=N] [parallelism=...] [data.root=...]\n"
    "train resume SWEEP [--config-dir DIR]",
    "repeat": "train repeat RUN [key=value ...]",
    "evaluate": "train evaluate RUN... [tta=none|flip|ten_crop|multi_scale] [ensemble=mean|snapshots] [key=value ...]",
}

# --- what may be typed after them, for completion ---------------------------------------------------------

_OURS = ("--debug", "--trust", "--help")
_HYDRAS = ("--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir", "--config-name", "--hydra-help")
FLAGS = {
    "": (*_HYDRAS, "--shell-completion", "--resume", *_OURS, "--version"),
    "plan": ("--multirun", "--config-dir", "--show", *_OURS),
    "resume": ("--config-dir", *_OURS),
    "repeat": _OURS,
    "evaluate": _OURS,
}
FLAG_VALUES = {
    "--resume": ("auto",),
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--shell-completion": ("install=bash", "install=zsh", "install=fish"),
}
KEYS_OF_RESUME = ("epochs", "steps", "schedule_length", "parallelism")
VIEWS = ("none", "flip", "ten_crop", "multi_scale")
ENSEMBLES = ("mean", "snapshots")
