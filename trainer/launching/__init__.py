"""The processes of a job: this one, ranks started here, or ranks that torchrun or srun started.

Hydra lives in exactly one process and no command line is run twice: what a rank is to do comes as a
configuration. Torch is imported by those who train only.
"""

from trainer.launching.given import folder_of_earlier_attempt, follow, followed, is_follower, see_slurm
from trainer.launching.start import launch, train

__all__ = ["folder_of_earlier_attempt", "follow", "followed", "is_follower", "launch", "see_slurm", "train"]
