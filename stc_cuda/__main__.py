"""``python -m stc_cuda``: the command line, for ``torchrun -m stc_cuda train ...``."""

from .cli import run

if __name__ == "__main__":
    run()
