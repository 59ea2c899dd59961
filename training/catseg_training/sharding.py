"""What a model needs for FSDP, which shards parameters over processes (`accelerate launch --use_fsdp`)."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from catseg_hf import CATSegForSemanticSegmentation


# Modules that are run as a whole. CLIP's last vision block and the model around it are not: their parts are called.
WRAPPED_MODULES = ["CATSegAggregatorLayer", "CATSegDecoder", "CLIPMLP"]


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a process holds only a part of each parameter, so that nothing but the whole model can be run."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def prepare_for_sharding(accelerator: Accelerator, model: CATSegForSemanticSegmentation):
    """
    Where FSDP is used, makes the model one that can be sharded, and names the modules to shard if nobody has.

    Args:
        accelerator (`Accelerator`): Of the run.
        model ([`CATSegForSemanticSegmentation`]): The model, which is changed.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = WRAPPED_MODULES
    # FSDP2 takes no parameter without axes. CLIP's temperature, which nothing here uses, is saved all the same.
    temperature = model.clip.logit_scale.detach()
    del model.clip.logit_scale
    model.clip.register_buffer("logit_scale", temperature)
