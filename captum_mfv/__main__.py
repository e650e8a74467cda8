"""``python -m captum_mfv`` is the command ``captum-mfv``."""

from captum_mfv.cli import main

if __name__ == "__main__":
    main()
