"""`python -m ossia`, and with it `torchrun -m ossia`."""

from ossia.cli.main import main

if __name__ == "__main__":
    main()
