"""python -m fastsocks"""

import sys

from fastsocks.cli import main

sys.exit(main())
