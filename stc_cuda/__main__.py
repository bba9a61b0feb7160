"""``python -m stc_cuda``: the command line, for ``torchrun -m stc_cuda train ...``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
