"""`python -m malcli`, also for `accelerate launch -m malcli fit ...`."""

from malcli.cli.main import main

if __name__ == "__main__":
    main()
