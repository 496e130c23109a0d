"""`python -m rmr1_jax STAGE ...`."""

import sys

from rmr1_jax.main import main

sys.exit(main())
