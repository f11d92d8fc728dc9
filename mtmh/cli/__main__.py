"""``python -m mtmh.cli``, the form in which jobs start a verb."""

from mtmh.cli import main

if __name__ == "__main__":
    main()
