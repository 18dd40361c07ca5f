"""Whether new values may be written into a layer of the user's network."""

from torch import nn


def why_not_writable(module: nn.Module, name: str, called: str) -> str:
    """Why the parameters of a layer cannot be overwritten; "" if they can.

    Other parameters may compute them (weight norm, pruning, any parametrization), they may be frozen, or shared with
    another layer.

    Args:
        module: The network.
        name: Dotted name of the layer.
        called: What to call the layer in the answer, such as ``"the readout 'fc'"``.
    """
    layer = module.get_submodule(name)
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return f"The weight of {called} is computed from other parameters (weight norm, parametrization)"
    for kind, parameter in layer.named_parameters(recurse=False):
        if not parameter.requires_grad:
            return f"`{name}.{kind}` is frozen (requires_grad=False)"
        names = [n for n, p in module.named_parameters(remove_duplicate=False) if p is parameter]
        if len(names) > 1:
            return f"`{name}.{kind}` is shared: it is also {[n for n in names if n != f'{name}.{kind}']}"
    return ""
