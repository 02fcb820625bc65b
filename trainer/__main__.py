"""`python -m trainer` is the same program as `train` (and what torchrun starts)."""

from trainer.app import main

if __name__ == "__main__":
    main()
