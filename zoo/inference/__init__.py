"""The runner: SVI on a compiled whole-program graph, NUTS on nutpie, one posterior type for both."""
