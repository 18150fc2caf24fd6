"""``python -m saelab`` and ``accelerate launch -m saelab``: the command line."""

from saelab.cli.app import app

if __name__ == "__main__":
    app()
