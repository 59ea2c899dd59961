"""torch.compile without graph breaks and without a new graph for every vocabulary, and torch.export."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func
from torch.export import Dim

from catseg_testing.host_waits import HostWaits


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def text_embeds(num_classes: int) -> torch.Tensor:
    noise = torch.randn(num_classes, 1, 64, generator=torch.Generator().manual_seed(num_classes))
    return F.normalize(noise, dim=-1)


def pixels(batch_size: int) -> torch.Tensor:
    return torch.randn(batch_size, 3, 96, 96, generator=torch.Generator().manual_seed(batch_size))


def assert_compiled_equals(model, compiled, num_classes: int):
    inputs = {"text_embeds": text_embeds(num_classes), "sliding_window": False}
    expected = model(pixels(1), **inputs).logits
    torch.testing.assert_close(compiled(pixels(1), **inputs).logits, expected, rtol=0, atol=1e-4)


def test_graphs_for_any_number_of_classes(model):
    """No new graph for a vocabulary of another size; the code of graphs is compiled below."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for first, others in (((5, 17, 40), (64, 171)), ((270, 300), (400,))):  # up to the class cut, and above it
            for num_classes in first:  # torch chooses other convolutions for few maps
                assert_compiled_equals(model, compiled, num_classes)
            graphs = counter.frame_count
            for num_classes in others:
                assert_compiled_equals(model, compiled, num_classes)
            assert counter.frame_count == graphs


def test_inference(model):
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for num_classes in (40, 64):
            assert_compiled_equals(model, compiled, num_classes)


def test_training(model, golden_inputs):
    """One graph of a step, with activations that are computed again for the gradients, as train.py has it. What is
    captured runs as it is: compiling the graphs of both directions to code takes minutes, and torch tests that."""
    labels = torch.randint(0, 5, (2, 48, 48), generator=torch.Generator().manual_seed(0))
    model.train().freeze_clip("attention")
    model.activation_checkpointing_enable()
    gradients = {}
    for name, forward in (("eager", model), ("compiled", torch.compile(model, fullgraph=True, backend="eager"))):
        model.zero_grad()
        forward(**golden_inputs, labels=labels).loss.backward()
        gradients[name] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    assert gradients["eager"].keys() == gradients["compiled"].keys()
    for key, gradient in gradients["eager"].items():
        torch.testing.assert_close(gradients["compiled"][key], gradient, rtol=1e-3, atol=1e-5)


def test_sliding_window_is_one_graph(model):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = {"text_embeds": text_embeds(5), "sliding_window": True}
    with torch.no_grad():
        picture = F.interpolate(pixels(1), size=(640, 640))
        torch.testing.assert_close(
            compiled(picture, **inputs).logits, model(picture, **inputs).logits, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("fullgraph", [False, True])
def test_own_vocabulary_is_encoded_once(fullgraph, model_with_vocabulary):
    model, num_prompts = model_with_vocabulary, []
    model.clip.text_model.register_forward_hook(lambda module, args, output: num_prompts.append(len(output[0])))
    compiled = torch.compile(model, fullgraph=fullgraph, backend="eager")
    with torch.no_grad():
        for _ in range(2):  # the second time with other weights of the text model
            expected = model(pixels(1), sliding_window=False).logits
            model.catseg._kept_text_embeds = None
            num_prompts.clear()
            for _ in range(3):
                torch.testing.assert_close(
                    compiled(pixels(1), sliding_window=False).logits, expected, rtol=0, atol=1e-4
                )
            whole_vocabularies = [number for number in num_prompts if number == 4]
            # Without `fullgraph` one prompt of the four shows every time that nothing has changed.
            assert len(whole_vocabularies) == (3 if fullgraph else 1)
            for parameter in model.clip.text_model.parameters():
                parameter.mul_(1.1)


def test_export_with_dynamic_batch_and_classes(model):
    inputs = {"pixel_values": pixels(2), "text_embeds": text_embeds(5), "sliding_window": False}
    dynamic_shapes = {
        "pixel_values": {0: Dim("batch", min=1, max=16)},
        "text_embeds": {0: Dim("classes", min=2)},
        "sliding_window": None,
    }
    with torch.no_grad():
        program = torch.export.export(
            model, (), inputs, dynamic_shapes=dynamic_shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
        for batch_size, num_classes in ((1, 2), (3, 40), (2, 300)):
            other = {**inputs, "pixel_values": pixels(batch_size), "text_embeds": text_embeds(num_classes)}
            torch.testing.assert_close(program.module()(**other).logits, model(**other).logits, rtol=0, atol=1e-4)


def test_graphs_without_the_host(model):
    """What CUDA graphs need: fixed shapes, and nothing that is read from the device or copied to it."""
    graphs, host = [], HostWaits()

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)

        def run(*arguments: torch.Tensor):
            with host:
                return graph(*arguments)

        return make_boxed_func(run)

    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=record))
    image = F.interpolate(pixels(1), size=(640, 640))
    inputs = {"text_embeds": text_embeds(12), "sliding_window": True, "max_classes_per_image": 8}
    with torch.no_grad():
        logits = compiled(image, **inputs).logits
        torch.testing.assert_close(logits, model(image, **inputs).logits, rtol=0, atol=1e-3)
    assert len(graphs) == 1 and host.waits == []
    shapes = [node.meta["val"].shape for node in graphs[0].graph.nodes if hasattr(node.meta.get("val"), "shape")]
    assert shapes and all(isinstance(side, int) for shape in shapes for side in shape)
