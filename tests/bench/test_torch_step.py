"""The PyTorch step of the benchmark: its networks, its losses, the order of its updates, its forms.

`torch_reference` is the oracle; the two share no code.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch_reference import NLayerDiscriminator, Trainer, UnetGenerator  # noqa: E402

from p2p_jax.bench import torch_forms, torch_nets  # noqa: E402
from p2p_jax.bench.torch_step import (  # noqa: E402
    Sizes,
    TorchForm,
    TorchInference,
    TorchTraining,
    available,
    forms,
    version,
)

ROOT = Path(__file__).parents[2]
EAGER = TorchForm("", "float32", False)
DEPTH, BASE, SIZE = 5, 4, 32
TINY = Sizes(SIZE, DEPTH, BASE)


def training(form=EAGER, batch_size=2, dropout=True, **options):
    """A tiny one."""
    made = TorchTraining(form, batch_size, "cpu", TINY, **options)
    for module in made.generator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5 if dropout else 0.0
    return made


def in_float64(made):
    """The same training in float64, all of it in place but the data."""
    made.generator.double()
    made.discriminator.double()
    made.source, made.target = made.source.double(), made.target.double()
    return made


def reference(made):
    """The reference's trainer with copies of the weights, which it has in the same order."""
    generator = UnetGenerator(3, 3, downs=DEPTH, ngf=BASE).double()
    discriminator = NLayerDiscriminator(6, ndf=BASE, layers=3).double()
    with torch.no_grad():
        for net, ours in ((generator, made.generator), (discriminator, made.discriminator)):
            for to, weight in zip(net.parameters(), ours.parameters(), strict=True):
                to.copy_(weight)
        ups = [m for m in generator.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
        for up in ups:
            if up.weight.shape[0] > up.weight.shape[1] and up is not ups[0]:
                skip, decoder = up.weight.chunk(2)  # the reference has the skip first
                up.weight.copy_(torch.cat([decoder, skip]))
    return Trainer(generator, discriminator)


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def moved(before, net):
    """Of each parameter, whether it is another than before."""
    return [not torch.equal(b, p) for b, p in zip(before, net.parameters(), strict=True)]


# --- networks ------------------------------------------------------------------------------------


def test_parameters_of_the_full_size():
    with torch.device("meta"):
        nets = torch_nets.UNet(), torch_nets.PatchGan()
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert counts == [54_413_955, 2_768_705]


def test_sizes_of_the_full_size():
    with torch.device("meta"):
        image = torch.empty(2, 3, 256, 256)
        assert torch_nets.UNet()(image).shape == (2, 3, 256, 256)
        assert torch_nets.PatchGan()(image, image).shape == (2, 1, 30, 30)


def test_the_three_innermost_decoder_blocks_but_the_last_drop_out():
    with torch.device("meta"):
        dropped = [block.dropout is not None for block in torch_nets.UNet().decoder]
    assert dropped == [True] * 3 + [False] * 5


def test_weights_are_the_papers():
    net = torch_nets.initialised(torch_nets.UNet(DEPTH, 16), 0)
    for block in (*net.encoder, *net.decoder):
        assert block.conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(block.conv.weight.mean().item()) < 0.002
        if block.norm is not None:
            assert block.norm.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert block.norm.weight.std().item() == pytest.approx(0.02, rel=0.5)
            assert not block.norm.bias.any()
    assert not net.decoder[-1].conv.bias.any()


# --- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_three_steps_are_those_of_the_reference(channels_last):
    form = TorchForm("", "float32", channels_last)
    ours = in_float64(training(form, dropout=False))
    theirs = reference(ours)
    for _ in range(3):
        expected = theirs.step(ours.source, ours.target)
        expected = {"disc": expected["disc"], "gen_gan": expected["gan"], "gen_l1": expected["l1"]}
        ours.steps(1)
        assert ours.losses() == pytest.approx(expected, rel=1e-9)
    ends = ours.generator.decoder[-1].conv.bias, theirs.generator.model.model[-2].bias
    torch.testing.assert_close(*ends, rtol=1e-6, atol=0)


def test_float32_is_as_good_as_float32_can_be():
    ours, exact = training(dropout=False), in_float64(training(dropout=False))
    for made in (ours, exact):
        made.steps(1)
    assert ours.losses() == pytest.approx(exact.losses(), rel=1e-5)
    assert ours.losses() != exact.losses()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_several_steps_at_once_are_as_many_one_by_one(precision):
    """With bfloat16 as well: autocast, as long as it lasts, keeps the weights it has cast."""
    form = TorchForm("", precision, False)
    once, thrice = training(form, dropout=False), training(form, dropout=False)
    thrice.steps(3)
    for _ in range(3):
        once.steps(1)
    assert once.losses() == thrice.losses()


def test_the_discriminators_update_leaves_the_generator_alone():
    made = training()
    fake = made.generator(made.source)
    generator, discriminator = weights(made.generator), weights(made.discriminator)
    made._update_discriminator(fake.detach())
    assert not any(moved(generator, made.generator))
    assert all(p.grad is None for p in made.generator.parameters())
    assert all(moved(discriminator, made.discriminator))


def test_the_generators_update_leaves_the_discriminator_alone():
    made = training()
    fake = made.generator(made.source)
    generator, discriminator = weights(made.generator), weights(made.discriminator)
    made._update_generator(fake)
    assert not any(moved(discriminator, made.discriminator))
    assert all(p.grad is None for p in made.discriminator.parameters())
    assert all(p.requires_grad for p in made.discriminator.parameters())
    assert all(moved(generator, made.generator))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_generator_is_judged_by_the_updated_discriminator(precision):
    made = training(TorchForm("", precision, False), dropout=False)
    made._adam_d.param_groups[0]["lr"] = 0.01
    before = copy.deepcopy(made.discriminator)
    with torch_forms.autocast(made._form, "cpu"), torch.no_grad():
        fake = copy.deepcopy(made.generator)(made.source)
    made.steps(1)

    def judged_by(net):
        with torch_forms.autocast(made._form, "cpu"), torch.no_grad():
            return torch.nn.functional.softplus(-net(made.source, fake)).mean().item()

    found = made.losses()["gen_gan"]
    assert found == pytest.approx(judged_by(made.discriminator), rel=1e-4)
    assert abs(found - judged_by(before)) > 0.01


def test_bfloat16_computes_in_it_and_keeps_float32():
    made, exact = (
        training(TorchForm("", p, False), dropout=False) for p in ("bfloat16", "float32")
    )
    seen = []
    made.generator.encoder[1].conv.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    for one in (made, exact):
        one.steps(1)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in made.generator.parameters())
    assert made.losses() == pytest.approx(exact.losses(), rel=0.05)
    assert made.losses() != exact.losses()


def test_channels_last_is_the_layout_throughout():
    made = training(TorchForm("", "float32", True))
    seen = []

    def look(module, inputs, output):
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for net in (made.generator, made.discriminator):
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.register_forward_hook(look)
    made.steps(1)
    assert seen == [True] * (2 * DEPTH + 3 * 5)
    assert made.source.is_contiguous(memory_format=torch.channels_last)


def test_data_and_weights_are_those_of_the_seed():
    one, same, other = training(), training(TorchForm("", "float32", True)), training(seed=1)
    for image in (one.source, one.target):
        assert image.shape == (2, 3, SIZE, SIZE)
        assert -1 <= image.min() < -0.99
        assert 0.99 < image.max() <= 1
    assert not torch.equal(one.source, one.target)
    assert torch.equal(one.source, same.source)
    assert not torch.equal(one.source, other.source)
    assert not any(moved(weights(one.generator), same.generator))
    assert moved(weights(one.generator), other.generator)[0]


def test_losses_before_a_step_are_refused():
    with pytest.raises(RuntimeError, match="before the first step"):
        training().losses()


# --- the generator alone -------------------------------------------------------------------------


def test_inference_is_the_generator_without_dropout_by_the_batchs_statistics():
    alone, whole = TorchInference(EAGER, 2, "cpu", TINY), training(dropout=False)
    seen = []
    alone.generator.register_forward_hook(lambda *a: seen.append(a[-1]))
    alone.steps(2)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)
    assert not seen[0].requires_grad
    torch.testing.assert_close(alone.source, whole.source, rtol=0, atol=0)
    torch.testing.assert_close(seen[0].clone(), whole.generator(whole.source).detach())


# --- forms ---------------------------------------------------------------------------------------


def test_forms_of_the_cpu():
    found = forms("cpu", ["float32", "tf32", "bfloat16"])
    names = ["eager", "eager channels_last", "compile", "compile channels_last"]
    assert [f.name for f in found if f.precision == "float32"] == names
    assert [f.name for f in found if f.precision == "bfloat16"] == names
    assert len(found) == 8


def test_forms_of_cuda():
    found = forms("cuda", ["tf32"])
    assert [f.name for f in found] == [
        *("eager", "eager channels_last", "compile", "compile channels_last"),
        *("reduce-overhead", "reduce-overhead channels_last"),
    ]
    assert {f.precision for f in found} == {"tf32"}


def test_unknown_devices_and_precisions_are_refused_together():
    with pytest.raises(ValueError, match=r"(?s)'tpu'.*'fp8'.*'float32', 'tf32', 'bfloat16'"):
        forms("tpu", ["float32", "fp8"])


@pytest.mark.parametrize("kind", [TorchTraining, TorchInference])
def test_what_does_not_fit_together_is_refused_at_once(kind):
    with pytest.raises(ValueError) as caught:
        kind(TorchForm("reduce-overhead", "tf32", False), 0, "cpu", Sizes(48, DEPTH))
    for part in ("tf32 is for cuda", "reduce-overhead is for cuda", "batch_size=0", "size=48"):
        assert part in str(caught.value)


def test_adam_is_fused_and_the_papers():
    made = training()
    for optimizer in (made._adam_g, made._adam_d):
        (group,) = optimizer.param_groups
        assert group["fused"]
        found = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        assert found == (2e-4, (0.5, 0.999), 1e-8, 0)


def test_adam_says_where_it_is_not_fused():
    with pytest.warns(RuntimeWarning, match="foreach instead"):
        optimizer = torch_forms.adam([torch.nn.Parameter(torch.empty(2, device="meta"))])
    assert optimizer.defaults["foreach"] and not optimizer.defaults["fused"]


@pytest.mark.parametrize(("precision", "expected"), [("float32", False), ("tf32", True)])
def test_settings_of_cuda_are_for_a_while(precision, expected):
    def now():
        flags = torch.backends.cudnn
        return flags.allow_tf32, flags.benchmark, torch.get_float32_matmul_precision()

    before = now()
    with torch_forms.settings(TorchForm("", precision, False), "cuda"):
        assert now() == (expected, True, "high" if expected else "highest")
    assert now() == before


def test_each_compiled_function_is_code_of_its_own():
    form = TorchForm("default", "float32", False)
    made = [torch_forms.compiled(torch_nets.translate, form) for _ in range(2)]
    codes = [m._torchdynamo_orig_callable.__code__ for m in made]
    assert len({id(code) for code in (*codes, torch_nets.translate.__code__)}) == 3


def test_torch_is_there_and_says_its_version():
    assert available()
    assert version() == torch.__version__


def test_without_torch_the_module_says_so():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from p2p_jax.bench import torch_step as t\n"
        "assert not t.available()\n"
        "form, = [f for f in t.forms('cpu', ['float32']) if f.name == 'compile']\n"
        "try: t.TorchTraining(form, 1, 'cpu')\n"
        "except ModuleNotFoundError as e: assert 'torch' in str(e)\n"
        "else: raise SystemExit('made without torch')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_inference_compiles_once_a_batch_size():
    """And for that size alone: a size left open would be slower code."""
    from torch._dynamo.utils import counters

    counters.clear()
    form, tiny = TorchForm("default", "bfloat16", False), Sizes(8, 2, BASE)
    for batch_size in (1, 2, 3):
        TorchInference(form, batch_size, "cpu", tiny).steps(2)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
