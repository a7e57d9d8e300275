"""One LLM server as arrays: requests, limits, physics, metrics."""

import warnings

from numba.core.errors import NumbaExperimentalFeatureWarning

from engine._cache import use_source_keyed_cache

use_source_keyed_cache()
# Policies reach the compiled loops as first-class functions, so that one cached loop serves all of them; numba calls
# the feature experimental each time it is compiled.
warnings.filterwarnings("ignore", "First-class function type feature", NumbaExperimentalFeatureWarning)
