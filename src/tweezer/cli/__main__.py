"""``python -m tweezer.cli``."""

from tweezer.cli import main

if __name__ == "__main__":
    main(prog_name="tweezer")
