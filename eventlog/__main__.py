"""`python -m eventlog`: the command, where its script is not on the path."""

from eventlog.cli import main

if __name__ == "__main__":
    main()
