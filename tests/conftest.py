"""What every test may rely on."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A busy machine is no failure. Where the verdict counts, the same examples are tried each time; fuzz/ looks for others.
settings.register_profile("softiommu", deadline=None, derandomize=bool(os.environ.get("SOFTIOMMU_REQUIRE_ALL")))
settings.load_profile("softiommu")
