"""Sub-commands, one module each with `main(arguments) -> exit code`. Only the first word can be a sub-command."""

COMMANDS = {
    "plan": "check and show everything without training; --show draws the augmentation",
    "resume": "continue a run where it stopped: same folder, same bits",
    "repeat": "run the configuration of a run again in a new folder",
    "evaluate": "metrics of the best weights of runs; tta=flip|ten_crop|multi_scale averages over views",
}
