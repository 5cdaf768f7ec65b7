"""`python -m puna`: the same as `puna`."""

from puna.cli.main import main

if __name__ == "__main__":
    main()
