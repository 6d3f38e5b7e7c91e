"""StyleGAN2 and DFM-GAN in the loop: resumed as uninterrupted, two processes as one, stopped when not finite."""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from gan_training import (
    ALONE,
    AUGMENTED,
    CPU,
    MAKE,
    SIZES,
    AnyConfig,
    AnyTraining,
    changed,
    iterated,
    maker,
    recipe1,
    recipe2,
    shake,
    start,
    state_of,
)
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from training import NoWaiting

from raygen.families.family import Fields
from raygen.families.stylegan2.batches import GANBatch, Latents, to_gan_batch
from raygen.families.stylegan2.step import StyleGAN2Training
from raygen.families.world import Terms, World
from raygen.train.loop import DivergedError, train


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------------- resume


class Told:
    """A watcher that keeps the losses, and may do something after every iteration."""

    def __init__(self, training: AnyTraining, then: Callable[[AnyTraining], None] = lambda _: None) -> None:
        self.training, self.then = training, then
        self.losses: list[tuple[int, dict[str, float]]] = []

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        self.losses.append((images_seen, losses))
        self.then(self.training)

    def checkpoint(self, training: AnyTraining) -> None:
        pass


def fields(training: AnyTraining, config: AnyConfig, world: World = ALONE) -> Iterator[Fields]:
    make = maker(config)
    for seen in range(training.images_seen, config.images, config.batch_per_worker * world.size):
        yield make(world.numbers(seen, config))


def trained(
    training: AnyTraining, config: AnyConfig, then: Callable[[AnyTraining], None] = lambda _: None
) -> list[tuple[int, dict[str, float]]]:
    """Trains to the end of the recipe; returns its losses."""
    told = Told(training, then)

    def step(some: Fields) -> Terms:
        return iterated(training, to_gan_batch(some, SIZES.channels, CPU), config)

    train(training, step, fields(training, config), config, ALONE, told)
    return told.losses


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_an_iteration_never_waits_for_the_device_but_to_move_the_augmentation(family: str) -> None:
    """Once what is kept has been made; without augmentation and path lengths, whose draws are the host's."""
    config = MAKE[family](mirror=True, **({"path_length": 0.0} if family == "stylegan2" else {}))
    training = start(config)
    assert config.adaptive.every > 3
    first, *others = itertools.islice(fields(training, config), 3)
    iterated(training, to_gan_batch(first, SIZES.channels, CPU), config)
    for some in others:
        batch = to_gan_batch(some, SIZES.channels, CPU)
        with NoWaiting():
            iterated(training, batch, config)


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one_bit_for_bit(family: str) -> None:
    """Also between two updates of the augmentation, whose probability moves before and after."""
    adaptive = {"target": -1, "full_range": 100, "every": 2}
    config = MAKE[family](adaptive=adaptive, mirror=True)
    begun, states = start(config), []
    begun.controller.p = 0.3

    def stop_at_12(now: AnyTraining) -> None:
        if now.images_seen == 12:
            torch.save(now.state_dict(), buffer := io.BytesIO())
            states.append(buffer.getvalue())

    whole = trained(begun, config, stop_at_12)
    resumed = start(config.model_copy(update={"seed": 5}))  # other weights, all of which must go
    for _, network in resumed.networks():
        shake(network)
    resumed.load_state_dict(torch.load(io.BytesIO(states[0]), weights_only=True))
    assert resumed.images_seen == 12
    assert resumed.controller.num_images == 4
    assert trained(resumed, config) == whole[3:]
    assert [seen for seen, _ in whole] == [4, 8, 12, 16, 20, 24]
    assert len({terms["augmentation"] for _, terms in whole}) == 4
    for (name, network), (_, other) in zip(begun.networks(), resumed.networks(), strict=True):
        assert not changed(network, state_of(other)), name
    if isinstance(begun, StyleGAN2Training) and isinstance(resumed, StyleGAN2Training):
        assert torch.equal(begun.path_mean, resumed.path_mean)


@pytest.mark.parametrize(
    ("family", "network", "weight", "term"),
    [
        ("stylegan2", "backbone", "synthesis.constant", "G/adversarial"),
        ("stylegan2", "discriminator", "out.bias", "G/adversarial"),
        ("dfmgan", "generator", "manipulation.blocks.2.conv1.bias", "G/adversarial"),
        ("dfmgan", "generator", "manipulation.to_mask.bias", "G/match"),
        ("dfmgan", "matcher", "out.bias", "G/match"),
    ],
)
def test_a_weight_that_is_not_finite_stops_the_training_and_a_term_is_named(
    family: str, network: str, weight: str, term: str
) -> None:
    config = MAKE[family]()
    seen = []

    def poison(now: AnyTraining) -> None:
        seen.append(now.images_seen)
        if now.images_seen == 8:
            with torch.no_grad():
                dict(now.networks())[network].get_parameter(weight).fill_(float("nan"))

    with pytest.raises(DivergedError, match=rf"^the loss {term} is nan at image 8;"):
        trained(start(config), config, poison)
    assert seen == [4, 8]


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_every_network_s_weights_are_looked_at_before_a_checkpoint(family: str) -> None:
    training = start(MAKE[family]())
    assert training.is_finite()
    for name, network in training.networks():
        parameter = next(iter(network.parameters()))
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(float("inf"))
            assert not training.is_finite(), name
            parameter.copy_(kept)
    assert training.is_finite()


# ------------------------------------------------------------------------------------- two processes as one


class Outcome(NamedTuple):
    """What two iterations lead to."""

    losses: list[dict[str, float]]
    weights: dict[str, Tensor]  # and the averages of w
    scalars: dict[str, float]


CASES: dict[str, AnyConfig] = {
    "stylegan2": recipe1(adaptive=AUGMENTED, images=16),
    "dfmgan": recipe2(adaptive=AUGMENTED, images=16, mode_seeking=0),
    "mode seeking": recipe2(adaptive=AUGMENTED, images=16),
}


def doubled(some: GANBatch) -> GANBatch:
    """In double precision, but for the numbers of augmentation."""

    def twice(latents: Latents) -> Latents:
        return Latents(*(tensor.double() for tensor in latents))

    return some._replace(
        x=some.x.double(),
        masks=some.masks.double(),
        normals=(twice(some.normals[0]), twice(some.normals[1])),
        defects=(twice(some.defects[0]), twice(some.defects[1])),
    )


def two_iterations(config: AnyConfig, world: World) -> Outcome:
    """On batches of 8 in all."""
    config = config.model_copy(update={"batch_per_worker": 8 // world.size})
    training = start(config)
    training.controller.p = 0.5
    for _, network in training.networks():
        network.double()
    if isinstance(training, StyleGAN2Training):
        training.path_mean = training.path_mean.double()
    found = []
    for some in fields(training, config, world):
        terms = iterated(training, doubled(to_gan_batch(some, SIZES.channels, CPU)), config, world)
        means = world.mean(torch.stack(list(terms.values()))).tolist()
        found.append(dict(zip(terms, means, strict=True)))
    weights = {
        f"{name}.{key}": value.detach().clone()
        for name, network in training.networks()
        for key, value in network.state_dict().items()
    }
    scalars = {"p": training.controller.p, "seen": float(training.images_seen)}
    if isinstance(training, StyleGAN2Training):
        scalars["path_mean"] = training.path_mean.item()
    return Outcome(found, weights, scalars)


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, config in CASES.items():
        outcome = two_iterations(config, World(rank, 2))
        torch.save(tuple(outcome), f"{folder}/{name}-{rank}.pt")
    torch.manual_seed(rank)  # as two kinds of CPU might draw
    network = nn.BatchNorm1d(4)
    network.weight.data.normal_()
    network.running_mean = torch.randn(4)
    World(rank, 2).share([network])
    torch.save(network.state_dict(), f"{folder}/shared-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left."""
    folder = tmp_path_factory.mktemp("two")
    start_processes(one_of_two, (str(folder),), nprocs=2)
    return folder


def test_processes_begin_with_the_first_one_s_weights_and_buffers(folder_of_two: Path) -> None:
    first, second = (torch.load(folder_of_two / f"shared-{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(second["weight"], torch.empty(4).normal_())
    assert torch.equal(second["running_mean"], torch.randn(4))


@pytest.fixture(scope="module")
def of_two(folder_of_two: Path) -> dict[str, list[Outcome]]:
    """What both processes come to, in every case."""
    folder = folder_of_two
    return {name: [Outcome(*torch.load(folder / f"{name}-{rank}.pt")) for rank in range(2)] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_both_batches(case: str, of_two: dict[str, list[Outcome]]) -> None:
    """Losses, weights, averages and the augmentation's probability; in double precision, for Adam's first steps
    have the size of the rate however small a gradient is, and would make much of its rounding."""
    wanted, (first, second) = two_iterations(CASES[case], ALONE), of_two[case]
    assert first.scalars == second.scalars
    for name, value in first.weights.items():
        assert torch.equal(value, second.weights[name]), name
    assert first.scalars == pytest.approx(wanted.scalars, rel=1e-5)
    assert first.scalars["seen"] == 16
    assert first.scalars["p"] != 0.5
    for found, terms in zip(first.losses, wanted.losses, strict=True):
        assert found == pytest.approx(terms, rel=1e-5)
    assert set(first.weights) == set(wanted.weights)
    for name, value in wanted.weights.items():
        scale = value.abs().max().clamp_min(1e-3)
        assert (first.weights[name] - value).abs().max() <= 1e-5 * scale, name
