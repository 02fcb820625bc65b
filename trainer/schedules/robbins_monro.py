"""The conditions on learning rates for convergence in the limit."""


def robbins_monro(tail: float | None) -> dict[str, bool]:
    """Answer the conditions on the rates g_t ~ t^-tail for convergence in the limit, one by one.

    Empty if there is no tail, because the schedule ends with the run or follows evaluations. Source: Optimization
    (Part 2), the first two; UVic PHYS 555; Robbins & Monro 1951.
    """
    if tail is None:
        return {}
    return {"rate -> 0": tail > 0, "sum of rates = inf": tail <= 1, "sum of squares < inf": tail > 0.5}
