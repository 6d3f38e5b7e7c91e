"""DT-GAN's vital signs: does content obey z, does E read it back, does D learn, does B leave defects out?

Codes, layers and B are those of the averaged weights, which samples will be made by; D is met as it is now by
fakes of G and M as they are now, since that is the game that teaches them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raygen import images
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.families.dtgan.batches import healed
from raygen.families.dtgan.networks import Generator, compose
from raygen.families.dtgan.sizes import NORMAL, DTGANConfig
from raygen.families.dtgan.step import Networks, Training
from raygen.families.masks import find_defects
from raygen.families.photos import DefectSet, loader
from raygen.families.recipes import MaskConfig
from raygen.families.vital_signs import (
    NUM_PHOTOS,
    Latents,
    Signs,
    Threshold,
    correlation,
    in_parts,
    load,
    mean_distance,
    means,
    of_discriminator,
    ratio,
    share_of_variance,
    some,
    thresholds_of_discriminator,
)
from raygen.metrics import kernel_distance
from raygen.pixel_features import PixelFeatures

_LATENTS, _NOISES = 8, 4  # of the layout that tells z's share
_NUM_MASKS = 16
_FAINT = 8 / 127.5  # of [-1, 1]: 8 grey levels

THRESHOLDS = (
    Threshold(
        "content/z_share",
        "content ignores z",
        "set model.content_map = true and loss.detach_codes = true, or lower optimizer.mapping_lr",
        below=0.2,
        deadly=True,
    ),
    Threshold(
        "style/recovered",
        "E does not read the style that a translation was made of",
        "set loss.layer = 5 where there are masks, or raise loss.style_content or optimizer.encoder_lr",
        below=0.1,
        since=0.3,
    ),
    Threshold(
        "content/recovered",
        "E does not read the content that a translation was made of",
        "raise loss.style_content or optimizer.encoder_lr; look at content/z_share first",
        below=0.1,
        since=0.3,
    ),
    *thresholds_of_discriminator(
        teach="lower loss.r1, raise optimizer.discriminator_lr or head_start, or set optimizer.weight_decay = 0",
        restrain="raise loss.r1, or lower optimizer.discriminator_lr",
        widen="bring more photos, set augment = true, or raise loss.r1",
    ),
    Threshold(
        "background/kept",
        "B keeps the defects that it should leave to F",
        "set loss.layer = 5 where there are masks, and lower loss.cycle",
        above=0.5,
        since=0.3,
    ),
    Threshold(
        "diversity/between_within",
        "references do not guide: two differ hardly more than one and its mirror image",
        "set optimizer.encoder_on_references = true, or raise loss.content_consistency",
        below=1.1,
        since=0.3,
    ),
    Threshold(
        "diversity/latent",
        "all latents draw the same layer",
        "raise loss.diversity; look at content/z_share first",
        below=0.001,
        since=0.3,
    ),
    Threshold(
        "mask_area",
        "layers hold no defect that a mask could be read off",
        "train longer, raise optimizer.generator_lr, or look at D's signs first",
        below=0.0005,
        since=0.5,
    ),
    Threshold(
        "mask_area",
        "layers change whole photos",
        "lower loss.diversity, or set loss.diversity_clamp = true",
        above=0.5,
        since=0.3,
    ),
)


class Drawn(NamedTuple):
    """What M draws N codes of."""

    products: Tensor  # (N,) long
    z: Tensor  # (N, latent_dim)
    noise: Tensor  # (N, noise_size)


@torch.no_grad()
def vital_signs(
    training: Training, learning: DefectSet, judged: DefectSet, sizes: DTGANConfig, seed: int
) -> Signs:
    """Means over the defect types; arguments as in `raygen.families.family.Trainer.vital_signs`."""
    device = next(training.average.mapping.parameters()).device
    rows = some(judged, NORMAL)
    normals = load(judged, rows, sizes, device)
    products = torch.tensor(judged.product_numbers, device=device)
    found: list[Signs] = []
    for domain in range(1, sizes.num_domains):
        latents = Latents(seed, domain, device)
        z, noise = latents.normal(len(rows), sizes.latent_dim), latents.normal(len(rows), sizes.noise_size)
        drawn = Drawn(products[rows], z, noise)
        # One product, that has this defect: what M knows of products must not pass for what z says.
        own = torch.tensor(learning.product_numbers[learning.domains.index(domain)], device=device)
        defects = load(judged, some(judged, domain), sizes, device)
        learned = None if judged is learning else load(learning, some(learning, domain), sizes, device)
        masked = [p for p in judged.photos if p.mask_uri] or [p for p in learning.photos if p.mask_uri]
        found.append(
            {
                "content/z_share": _z_share(training.average, sizes, domain, own, latents),
                **_recovered(training.average, domain, normals, drawn),
                **_game(training.networks, domain, normals, drawn, defects, learned),
                **_background(
                    training.average,
                    [p for p in masked if p.defect_type == judged.defect_types[domain - 1]],
                    sizes,
                ),
                **_layers(
                    training.average, domain, normals[:1], Drawn(own.expand(len(rows)), z, noise), defects
                ),
            }
        )
    return means(found)


@torch.no_grad()
def distance_from_real(networks: Networks, judged: DefectSet, sizes: DTGANConfig, seed: int) -> float:
    """The kernel distance of what is drawn from real defects, a mean over the types, latent-guided and
    reference-guided, on features without a network.

    Of bare defects where there are masks, F(s, c) against x - h: no background stands before what differs. Else of
    whole images.
    """
    device = next(networks.mapping.parameters()).device
    features = PixelFeatures(None, device)
    generator = networks.translator.get_submodule("generator")
    masked = judged.only(lambda photo: photo.mask_uri is not None)
    draw = generator.defect_layer if isinstance(generator, Generator) else None
    is_bare = draw is not None and set(judged.domains) - {NORMAL} <= set(masked.domains)
    of = masked if is_bare else judged
    normals = load(judged, some(judged, NORMAL), sizes, device)

    def described(pixels: Tensor) -> np.ndarray:
        if is_bare:  # the eye sees no weaker change; and that of a real defect is 0 beside it
            pixels = pixels.where(pixels.abs() > _FAINT, 0.0)
        return features(images.from_model(pixels).cpu().numpy())

    distances = []
    for domain in range(1, sizes.num_domains):
        latents = Latents(seed, domain, device)
        z, noise = latents.normal(NUM_PHOTOS, sizes.latent_dim), latents.normal(NUM_PHOTOS, sizes.noise_size)
        rows = some(of, domain)
        if len(rows) < 2:
            continue
        own = [of.product_numbers[rows[i % len(rows)]] for i in range(NUM_PHOTOS)]
        drawn = Drawn(torch.tensor(own, device=device), z, noise)
        x = load(of, rows, sizes, device)
        real = x - torch.cat([_healed(of.photos[row], sizes, networks) for row in rows]) if is_bare else x
        for codes in (_of_latents(networks, domain, drawn), _of_images(networks, domain, x)):
            if is_bare and draw:
                made = in_parts(draw, *codes)[:, : sizes.channels]
            else:
                on = normals[torch.arange(len(codes[0]), device=device) % len(normals)]
                made = in_parts(lambda *part: _translated(networks, *part), on, *codes)
            distances.append(kernel_distance(described(real), described(made), num_subsets=20).mean)
    return float(np.mean(distances)) if distances else 0.0


def _healed(photo: Photo, sizes: DTGANConfig, networks: Networks) -> Tensor:
    """A photo with a mask, its defect filled in: (1, C, H, W)."""
    (pixels,) = loader([photo], sizes, in_memory=False, masks="all")([0])
    return _tensor(healed(pixels), networks)


def _z_share(networks: Networks, sizes: DTGANConfig, domain: int, product: Tensor, latents: Latents) -> float:
    """On normals of one product, (), since what M knows of products is not z's."""
    z = latents.normal(_LATENTS, sizes.latent_dim).repeat_interleave(_NOISES, dim=0)
    noise = latents.normal(len(z), sizes.noise_size)
    content = _of_latents(networks, domain, Drawn(product.expand(len(z)), z, noise))[1]
    return share_of_variance(content.unflatten(0, (_LATENTS, _NOISES)))


def _recovered(networks: Networks, domain: int, x: Tensor, drawn: Drawn) -> Signs:
    """How far E reads the codes of translations."""
    style, content = _of_latents(networks, domain, drawn)
    fakes = in_parts(lambda *part: _translated(networks, *part), x, style, content)
    read_style, read_content = _of_images(networks, domain, fakes)
    return {
        "style/recovered": correlation(style, read_style),
        "content/recovered": correlation(content, read_content),
    }


def _game(
    networks: Networks,
    domain: int,
    x: Tensor,
    drawn: Drawn,
    defects: Tensor,
    learned: Tensor | None,
) -> Signs:
    def logits(photos: Tensor) -> Tensor:
        return in_parts(lambda part: networks.discriminator(part).adversarial[:, domain], photos)

    codes = _of_latents(networks, domain, drawn)
    fakes = in_parts(lambda *part: _translated(networks, *part), x, *codes)
    return of_discriminator(logits(defects), logits(fakes), None if learned is None else logits(learned))


def _background(networks: Networks, photos: Sequence[Photo], sizes: DTGANConfig) -> Signs:
    """The share of a real defect's contrast that B keeps; nothing without masks, or without a B."""
    generator = networks.translator.get_submodule("generator")
    if not isinstance(generator, Generator):
        return {}
    shares = []
    for photo in photos[:: max(1, len(photos) // _NUM_MASKS)][:_NUM_MASKS]:
        try:
            (pixels,) = loader([photo], sizes, in_memory=False, masks="all")([0])
        except UserError:  # a mask of no use, on which this training need not depend
            continue
        x, h = (_tensor(image, networks) for image in (pixels[..., :-1], healed(pixels)))
        mask = torch.from_numpy(pixels[..., -1] > 127).to(x)
        contrast = ((x - h).abs() * mask).sum().item()
        shares.append(ratio(((generator.background(x) - h).abs() * mask).sum().item(), contrast))
    return means([{"background/kept": share} for share in shares])


def _layers(networks: Networks, domain: int, x: Tensor, drawn: Drawn, references: Tensor) -> Signs:
    """How much defects differ on the same normal x, (1, C, H, W): of latents, of references, and of a reference
    and its mirror image, mirrored back; and how much of the image they cover."""
    generator = networks.translator.get_submodule("generator")
    if not isinstance(generator, Generator):
        return {}
    latent = in_parts(generator.defect_layer, *_of_latents(networks, domain, drawn))
    straight = in_parts(generator.defect_layer, *_of_images(networks, domain, references))
    mirrored = in_parts(generator.defect_layer, *_of_images(networks, domain, references.flip(3))).flip(3)
    between = mean_distance(compose(x, straight))
    within = (compose(x, straight) - compose(x, mirrored)).abs().mean().item()
    # As the main job reads masks: what goes beyond the layers' median, in grey levels.
    strength = (latent - latent.median(dim=0).values).abs().amax(dim=1) * 127.5
    return {
        "diversity/latent": mean_distance(compose(x, latent)),
        "diversity/between": between,
        "diversity/within": within,
        "diversity/between_within": ratio(between, within),
        "mask_area": float(find_defects(strength.cpu().numpy(), MaskConfig()).masks.mean()),
    }


def _of_latents(networks: Networks, domain: int, drawn: Drawn) -> tuple[Tensor, Tensor]:
    products, z, noise = drawn
    return networks.mapping(z, torch.full((len(z),), domain, device=z.device), noise, products)


def _of_images(networks: Networks, domain: int, x: Tensor) -> tuple[Tensor, Tensor]:
    read = [networks.encoder(part, torch.full((len(part),), domain, device=x.device)) for part in x.split(8)]
    style, content = zip(*read, strict=True)
    return torch.cat(style), torch.cat(content)


def _translated(networks: Networks, x: Tensor, style: Tensor, content: Tensor) -> Tensor:
    return networks.translator(x, style[None], content[None]).images[0]


def _tensor(pixels: np.ndarray, networks: Networks) -> Tensor:
    """uint8 (H, W, C) to (1, C, H, W) on the networks' device."""
    device = next(networks.mapping.parameters()).device
    return images.to_model(torch.from_numpy(np.ascontiguousarray(pixels)[None])).to(device)
