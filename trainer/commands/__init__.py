"""Sub-commands, one file each with a `main(arguments) -> exit code`; only the first word can be one."""

COMMANDS = {
    "plan": "everything checked and shown, nothing trained; --show draws the augmentation",
    "resume": "continue a run where it stopped, same folder, same bits",
    "repeat": "the configuration of a run again, in a new folder",
    "evaluate": "metrics of the best weights of runs; tta=flip|ten_crop|multi_scale averages over views",
}
