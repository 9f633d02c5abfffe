"""What at least two methods share: distributions, flows, layers and effect handlers."""
