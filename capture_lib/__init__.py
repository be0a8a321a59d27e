"""Product1M / CAPTURE: weakly supervised, instance-level product retrieval, as a thin library."""
