"""`python -m e2e_tts.pipelines.evaluation`: see `harness`."""

import sys

from .harness import main

if __name__ == "__main__":
    sys.exit(main())
