"""One table per case: the same model, data and batch for Pyro, hand-written PyTorch, NumPyro and zoo.

Every contender of a case lives in a process of its own, so that jax and torch share neither threads nor memory. All of
them are set up first, then they take turns: one runs a block of steps while the others wait at a pipe. A case whose
contenders do not compute the same loss at the same parameters is refused.
"""
