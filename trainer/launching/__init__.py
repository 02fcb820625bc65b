"""The processes of a job: this one, ranks started here, or ranks that torchrun or srun started.

Hydra runs in exactly one process, which reads the command line and sends the configuration to the ranks. Only
processes that train import torch.
"""

from trainer.launching.given import folder_of_earlier_attempt, follow, followed, is_follower
from trainer.launching.slurm import see_slurm
from trainer.launching.start import launch, train

__all__ = ["folder_of_earlier_attempt", "follow", "followed", "is_follower", "launch", "see_slurm", "train"]
