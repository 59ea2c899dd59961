"""What is being made of CAT-Seg's code while it runs: an exported graph, a compiled one, or nothing."""

import torch


def is_exporting() -> bool:
    """Whether this is being traced by torch.export."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def traces_one_graph() -> bool:
    """Whether this is being traced by torch.export, or compiled with `fullgraph=True`."""
    return is_exporting() or (torch.compiler.is_dynamo_compiling() and _compiles_one_graph())


@torch.compiler.assume_constant_result
def _compiles_one_graph() -> bool:
    # Slow to import, and imported already when this is called.
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().one_graph
