"""The loop ends where the recipe does, resumes bit for bit, and stops at what is not finite."""

import io
from collections.abc import Callable, Iterator

import pytest
import torch
from training import SIZES, NoWaiting, batch_maker, recipe

from raygen.families.dtgan.batches import Batch, to_batch
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.step import Training, iterate
from raygen.families.world import Terms, World
from raygen.train.loop import DivergedError, train

CPU = torch.device("cpu")


def batches(training: Training, config: DTGANTrainConfig) -> Iterator[Batch]:
    make = batch_maker()
    for seen in range(training.images_seen, config.images, config.batch_per_worker):
        yield to_batch(make(World().numbers(seen, config)))


class Told:
    """A watcher that passes on what it is told."""

    def __init__(self, note: Callable[[int, dict[str, float]], None]) -> None:
        self.passed_on = note
        self.checkpoints: list[int] = []

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        self.passed_on(images_seen, losses)

    def checkpoint(self, training: Training) -> None:
        self.checkpoints.append(training.images_seen)


def run(
    training: Training,
    config: DTGANTrainConfig,
    note: Callable[[Training, dict[str, float]], None],
    fetch_every: int | None = None,
) -> list[int]:
    """Trains to the end; returns when checkpoints were due."""
    told = Told(lambda _, losses: note(training, losses))

    def step(some: Batch) -> Terms:
        return iterate(training, training.networks, some, config, config.batch_per_worker)

    train(training, step, batches(training, config), config, World(), told, fetch_every)
    return told.checkpoints


def losses_of(training: Training, config: DTGANTrainConfig) -> list[tuple[int, dict[str, float]]]:
    found = []
    run(training, config, lambda now, losses: found.append((now.images_seen, losses)))
    return found


def test_a_training_ends_with_its_recipe() -> None:
    config = recipe(images=10)
    training = Training.start(config, SIZES, CPU)
    assert [seen for seen, _ in losses_of(training, config)] == [2, 4, 6, 8, 10]
    assert losses_of(training, config) == []


@pytest.mark.parametrize(("every", "wanted"), [(4, [4, 8, 10]), (3, [4, 6, 10]), (100, [10])])
def test_checkpoints_are_due_every_so_many_images_and_at_the_end(every: int, wanted: list[int]) -> None:
    config = recipe(images=10, checkpoint_every=every)
    assert run(Training.start(config, SIZES, CPU), config, lambda *_: None) == wanted


def test_weights_that_are_not_finite_are_no_checkpoint() -> None:
    """The last step before a checkpoint may break what no loss has seen yet."""
    config = recipe(images=8, checkpoint_every=4, optimizer={})
    training = Training.start(config, SIZES, CPU)
    bias = training.networks.translator.get_submodule("generator.fusion").get_parameter("bias")

    def poison(now: Training, _: dict[str, float]) -> None:
        bias.data.fill_(float("inf")) if now.images_seen == 4 else None

    with pytest.raises(DivergedError, match="a weight is not finite at image 4"):
        run(training, config, poison)


def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one_bit_for_bit() -> None:
    config = recipe(images=24)
    whole = losses_of(Training.start(config, SIZES, CPU), config)
    begun = Training.start(config, SIZES, CPU)
    states = []

    def stop_at_12(training: Training, _: dict[str, float]) -> None:
        if training.images_seen == 12:
            torch.save(training.state_dict(), buffer := io.BytesIO())
            states.append(buffer.getvalue())

    run(begun, config, stop_at_12)
    resumed = Training.start(recipe(seed=5), SIZES, CPU)  # other weights, all of which must go
    resumed.load_state_dict(torch.load(io.BytesIO(states[0]), weights_only=True))
    assert resumed.images_seen == 12
    assert losses_of(resumed, config) == whole[6:]
    for (_, average), (_, other) in zip(begun.average.items(), resumed.average.items(), strict=True):
        for one, two in zip(average.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_losses_that_are_fetched_together_are_the_same_in_the_same_order_before_each_checkpoint() -> None:
    config = recipe(images=20, checkpoint_every=6)
    one_by_one = losses_of(Training.start(config, SIZES, CPU), config)
    training, together, seen_at = Training.start(config, SIZES, CPU), [], []

    def note(now: Training, losses: dict[str, float]) -> None:
        together.append(losses)
        seen_at.append(now.images_seen)

    assert run(training, config, note, fetch_every=4) == [6, 12, 18, 20]
    assert together == [losses for _, losses in one_by_one]
    assert seen_at == [6, 6, 6, 12, 12, 12, 18, 18, 18, 20]


def test_a_loss_that_is_not_finite_is_named_with_its_own_image_however_late_it_is_fetched() -> None:
    config = recipe(images=40, checkpoint_every=100, optimizer={})
    training = Training.start(config, SIZES, CPU)
    generator = training.networks.translator.get_submodule("generator.fusion")
    noted = []

    def step(some: Batch) -> Terms:
        if training.images_seen == 6:
            generator.get_parameter("bias").data.fill_(float("nan"))
        return iterate(training, training.networks, some, config, config.batch_per_worker)

    told = Told(lambda _, losses: noted.append(losses))
    with pytest.raises(DivergedError, match=r"the loss latent/D/fake is nan at image 6"):
        train(training, step, batches(training, config), config, World(), told, fetch_every=8)
    assert len(noted) == 3
    assert training.images_seen == 16


def test_an_iteration_never_waits_for_the_device() -> None:
    """In the head start and after it, with all that comes now and then."""
    config = recipe(
        optimizer={"head_start": 2},
        loss={"layer": 5.0, "codes": 1.0, "codes_steps": 2, "r1_every": 2, "diversity_every": 2},
    )
    training = Training.start(config, SIZES, CPU)
    make = batch_maker(with_masks=True, num_latents=4)
    for seen in (0, 2, 4):
        some = to_batch(make(range(seen, seen + 2)))
        with NoWaiting():
            iterate(training, training.networks, some, config, 2)


def test_the_weight_of_diversity_does_not_start_again_with_a_resumed_training() -> None:
    """It depends on the images seen alone: losses after the decay are alike at any weight."""
    decayed, without = (
        recipe(optimizer={}, loss={"diversity": weight, "diversity_decay": 0.5}) for weight in (3, 1)
    )
    found = []
    for config in (decayed, without):
        training = Training.start(config, SIZES, CPU)
        training.images_seen = 12
        found.append([losses for _, losses in losses_of(training, config)])
    assert found[0] == found[1]


def test_a_loss_that_is_not_finite_stops_the_training_and_is_named() -> None:
    config = recipe(optimizer={})
    training = Training.start(config, SIZES, CPU)
    generator = training.networks.translator.get_submodule("generator.fusion")
    seen = []

    def poison(now: Training, _: dict[str, float]) -> None:
        seen.append(now.images_seen)
        if now.images_seen == 6:
            generator.get_parameter("bias").data.fill_(float("nan"))

    with pytest.raises(DivergedError, match=r"the loss latent/D/fake is nan at image 6"):
        run(training, config, poison)
    assert seen == [2, 4, 6]
