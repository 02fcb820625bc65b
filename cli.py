"""The same program as the console script: `python cli.py optimizer=adamw`."""

from trainer.app import main

if __name__ == "__main__":
    main()
