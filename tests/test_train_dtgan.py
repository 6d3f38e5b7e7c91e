"""One iteration of training: who learns what, on every rung of the ladder; two processes do as one."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from training import SIZES, batch, batch_maker, recipe

from raygen.families.dtgan.batches import to_batch
from raygen.families.dtgan.config import LossConfig
from raygen.families.dtgan.sizes import LADDER
from raygen.families.dtgan.step import (
    Networks,
    Training,
    build_networks,
    discriminator_objective,
    discriminator_terms,
    frozen,
    generator_objective,
    generator_terms,
    iterate,
)
from raygen.records import MODES, Mode

CPU = torch.device("cpu")


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def changed(network: nn.Module, before: list[Tensor]) -> bool:
    return any(not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------ translations


@pytest.mark.parametrize("fusion", ["linear", "alpha"])
def test_the_translator_shares_backgrounds_and_changes_nothing(fusion: Literal["linear", "alpha"]) -> None:
    networks = build_networks(replace(SIZES, fusion=fusion), seed=0)
    for parameter in networks.translator.parameters():  # the fusion starts at zero and would hide mistakes
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x = batch().x
    styles, contents = torch.randn(3, 4, SIZES.style_dim), torch.randn(3, 4, SIZES.content_channels, 16, 16)
    made, popped = networks.translator(x, styles, contents)[:2]
    generator = networks.translator.get_submodule("generator")
    for v in range(3):
        torch.testing.assert_close(made[v], generator(x, styles[v], contents[v]), rtol=1e-4, atol=1e-4)
    assert popped.shape == (4, SIZES.content_channels, 16, 16)


def test_the_terms_are_those_of_equation_8() -> None:
    networks = build_networks(SIZES, seed=0)
    judged = discriminator_terms(networks, batch(), "latent", with_r1=True)
    classes = {"foreground_class", "background_class"}
    assert set(judged) == {"real", "fake", "r1"} | classes | {f"fake_{name}" for name in classes}
    made = generator_terms(networks, batch(), "reference", LossConfig())
    names = {"style_content", "cycle", "content_consistency", "foreground_class", "background_class"}
    assert set(made) == names | {"adversarial", "diversity"}
    ones = {name: torch.tensor(1.0) for name in made}
    assert generator_objective(ones, LossConfig(), progress=0).item() == 6 - 1  # all 1, diversity taken away
    assert generator_objective(ones, LossConfig(), progress=1).item() == 6
    heavier = LossConfig(cycle=5, diversity=0.5, diversity_every=4)
    assert generator_objective(ones, heavier, progress=0.5).item() == 5 + 5 - 0.5 * 4 * 0.5
    ones = {name: torch.tensor(1.0) for name in judged}
    assert discriminator_objective(ones, LossConfig(r1=2, r1_every=16)).item() == 6 + 2 * 16
    assert discriminator_objective(ones, LossConfig(r1=0, foreground_class=3)).item() == 6 + 2 * 2


def test_d_classifies_fakes_by_what_they_are_meant_to_be() -> None:
    """Or not at all: then what fakes show decides nothing of its classifiers."""
    networks, made = build_networks(SIZES, seed=0), batch()
    images = []
    networks.discriminator.register_forward_pre_hook(lambda _, args: images.append(args[0].detach()))
    terms = discriminator_terms(networks, made, "latent", with_r1=False)
    out = networks.discriminator(images[1])
    for name, logits, wanted in (
        ("fore", out.foreground, made.target),
        ("back", out.background, made.product),
    ):
        found = terms[f"fake_{name}ground_class"]
        torch.testing.assert_close(found, nn.functional.cross_entropy(logits, wanted))
    real = discriminator_terms(networks, made, "latent", with_r1=False, classify_fakes=False)
    assert set(real) == {"real", "fake", "foreground_class", "background_class"}
    for value, names in ((True, set(terms)), (False, set(real))):
        config = recipe(optimizer={}, loss={"r1_every": 2, "classify_fakes": value})
        training = Training.start(config, SIZES, CPU)
        training.images_seen = 4  # an iteration without R1
        report = iterate(training, training.networks, made, config, 4)
        assert {name.removeprefix("latent/D/") for name in report if name.startswith("latent/D/")} == names


def test_diversity_may_be_clamped() -> None:
    """Values outside [-1, 1] are not seen, so nothing is gained by them."""
    networks = build_networks(SIZES, seed=0)
    fusion = networks.translator.get_submodule("generator.fusion")
    nn.init.normal_(fusion.get_parameter("weight"), std=100)
    free = generator_terms(networks, batch(), "latent", LossConfig())["diversity"]
    bounded = generator_terms(networks, batch(), "latent", LossConfig(diversity_clamp=True))["diversity"]
    assert bounded <= 6 * 2 < free


# ------------------------------------------------------------------------------------------- who learns


@pytest.mark.parametrize("mode", MODES)
def test_each_step_trains_its_own_networks(mode: Mode) -> None:
    networks = build_networks(SIZES, seed=0)
    discriminator_terms(networks, batch(), mode, with_r1=True)["real"].backward()
    assert [name for name, net in networks.items() if any(p.grad is not None for p in net.parameters())] == [
        "discriminator"
    ]
    networks = build_networks(SIZES, seed=0)
    fixed = [networks.discriminator] + [networks.mapping, networks.encoder] * (mode == "reference")
    with frozen(*fixed):
        terms = generator_terms(networks, batch(), mode, LossConfig(), train_encoder=mode == "latent")
        generator_objective(terms, LossConfig(), 0).backward()
    learned = {name for name, net in networks.items() if any(p.grad is not None for p in net.parameters())}
    assert learned == ({"translator", "mapping", "encoder"} if mode == "latent" else {"translator"})
    assert all(p.requires_grad for _, net in networks.items() for p in net.parameters())  # thawed again


@pytest.mark.parametrize("rung", LADDER)
def test_every_rung_of_the_ladder_takes_steps(rung: str) -> None:
    sizes = replace(SIZES, background_skip=False, **LADDER[rung])
    config = recipe(optimizer={}, loss={"r1_every": 1}, model=asdict(sizes))
    training = Training.start(config, sizes, CPU)
    before = {name: weights(network) for name, network in training.networks.items()}
    make, terms = batch_maker(sizes), {}
    for number in range(2):
        terms = iterate(
            training, training.networks, to_batch(make(range(4 * number, 4 * number + 4))), config, 4
        )
        assert all(term.isfinite() for term in terms.values()), terms
    assert training.images_seen == 8
    assert all(changed(network, before[name]) for name, network in training.networks.items())
    assert ("latent/G/foreground_class" in terms) == sizes.foreground_classifier
    assert ("latent/D/background_class" in terms) == sizes.background_classifier
    if rung == "a":
        assert terms["latent/G/content_consistency"] == 0


def test_a_head_start_trains_d_alone() -> None:
    config = recipe()
    training = Training.start(config, SIZES, CPU)
    before = {name: weights(network) for name, network in training.networks.items()}
    adversarial = weights(training.networks.discriminator.get_submodule("adversarial"))
    terms = iterate(training, training.networks, batch(), config, 4)
    assert set(terms) == {f"head start/D/{name}" for name in ("real", "foreground_class", "background_class")}
    assert [name for name, network in training.networks.items() if changed(network, before[name])] == [
        "discriminator"
    ]
    head = training.networks.discriminator.get_submodule("adversarial")
    for now, then in zip(head.parameters(), adversarial, strict=True):  # whatever the weight decay
        assert torch.equal(now, then)


def test_lazy_terms_come_every_so_many_iterations() -> None:
    config = recipe(optimizer={}, loss={"r1_every": 2, "diversity_every": 3})
    training = Training.start(config, SIZES, CPU)
    seen = [set(iterate(training, training.networks, batch(), config, 4)) for _ in range(4)]
    assert ["latent/D/r1" in names for names in seen] == [True, False, True, False]
    assert ["reference/G/diversity" in names for names in seen] == [True, False, False, True]


def test_the_average_is_that_of_the_weights() -> None:
    config = recipe(optimizer={"average": 0.75})
    training = Training.start(config, SIZES, CPU)
    wanted = [copy.deepcopy(weights(network)) for _, network in training.networks.items()]
    for _ in range(3):
        iterate(training, training.networks, batch(), config, 4)
        for averages, (_, network) in zip(wanted, training.networks.items(), strict=True):
            for average, parameter in zip(averages, network.parameters(), strict=True):
                average.copy_(0.75 * average + 0.25 * parameter.detach())
    for averages, (_, network) in zip(wanted, training.average.items(), strict=True):
        for average, parameter in zip(averages, network.parameters(), strict=True):
            torch.testing.assert_close(parameter.detach(), average, rtol=1e-5, atol=1e-6)


def test_mixed_precision_steps_are_close_to_full_ones() -> None:
    terms = {}
    for precision in ("float32", "bfloat16"):
        config = recipe(precision=precision, optimizer={})
        training = Training.start(config, SIZES, CPU)
        terms[precision] = iterate(training, training.networks, batch(), config, 4)
    for name, full in terms["float32"].items():
        assert terms["bfloat16"][name].item() == pytest.approx(full.item(), rel=0.1, abs=0.05), name


# --------------------------------------------------------------------------------- two processes as one


def gradients(networks: Networks, wrapped: Networks, numbers: range) -> dict[str, Tensor]:
    """Gradients of the four steps, in double precision, by step and weight."""
    made = to_batch(batch_maker()(numbers))
    doubled = type(made)(*(t.double() if t.is_floating_point() else t for t in made))
    found = {}
    for mode in MODES:
        terms = discriminator_terms(wrapped, doubled, mode, with_r1=True)
        discriminator_objective(terms, LossConfig()).backward()
        with frozen(wrapped.discriminator, *([wrapped.mapping] if mode == "reference" else [])):
            terms = generator_terms(wrapped, doubled, mode, LossConfig())
            generator_objective(terms, LossConfig(), 0).backward()
        for name, network in networks.items():
            for key, parameter in network.named_parameters():
                if parameter.grad is not None:
                    found[f"{mode} {name}.{key}"] = parameter.grad.clone()
                    parameter.grad = None
    return found


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    networks = build_networks(SIZES, seed=0)
    wrapped = Networks(*(DistributedDataParallel(network.double()) for _, network in networks.items()))
    found = gradients(networks, wrapped, range(2 * rank, 2 * rank + 2))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one_with_both_batches(tmp_path: Path) -> None:
    start_processes(one_of_two, (str(tmp_path),), nprocs=2)
    networks = build_networks(SIZES, seed=0)
    for _, network in networks.items():
        network.double()
    wanted = gradients(networks, networks, range(4))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert set(found) == set(wanted)
        for name, gradient in wanted.items():
            scale = gradient.abs().max().clamp_min(1e-3)
            assert (found[name] - gradient).abs().max() <= 1e-5 * scale, name
    assert {name.split(".")[0] for name in wanted} == {
        f"{mode} {name}" for mode in MODES for name, _ in networks.items()
    } - {"reference mapping"}
