"""How reduced programmes are minimised: Newton for smooth losses, interior points for hinge, CVXPY as the reference."""
