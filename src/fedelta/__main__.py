"""`python -m fedelta`: the command `fedelta`, for environments whose scripts are not on the path."""

from fedelta.cli import main

if __name__ == "__main__":
    main()
