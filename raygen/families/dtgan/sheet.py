"""A training's sample sheet: what its averaged weights do at a checkpoint."""

import numpy as np
import torch
from torch import Tensor

from raygen import images
from raygen.families.dtgan.sizes import NORMAL as NORMAL_DOMAIN
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.dtgan.step import Networks
from raygen.families.photos import DefectSet, loader
from raygen.show import draw_sheet

ROWS_PER_PRODUCT = 2
_MAX_PRODUCTS = 8


@torch.no_grad()
def training_sheet(
    networks: Networks, defects: DefectSet, sizes: DTGANConfig, seed: int, title: str = ""
) -> bytes:
    """Draws, for some normals of each product, a latent-guided translation to each defect type; a reference of
    each type, the translation guided by it, and its content in the latent's style; and a defect, its translation
    to normal, and back. Returns a PNG.

    The same photos and latents at every checkpoint of a training.
    """
    captions = ["normal"]
    captions += [f"{name}, latent" for name in defects.defect_types]
    for name in defects.defect_types:
        captions += ["reference", f"{name}, reference", f"{name}, restyled"]
    captions += ["defect", "to normal", "and back"]
    groups = {
        product: [_row(networks, defects, sizes, seed, product, row) for row in range(ROWS_PER_PRODUCT)]
        for product in defects.products[:_MAX_PRODUCTS]
    }
    return draw_sheet(captions, groups, sizes.image_size, title)


def _row(
    networks: Networks, defects: DefectSet, sizes: DTGANConfig, seed: int, product: str, row: int
) -> list[np.ndarray]:
    device = next(networks.mapping.parameters()).device
    random = np.random.Generator(np.random.Philox(key=np.array([seed, row], np.uint64)))
    load = loader(defects.photos, sizes, in_memory=False)
    domains = np.array(defects.domains)
    own = np.array([photo.product == product for photo in defects.photos])

    def photo_of(domain: int) -> Tensor:
        """A photo of the domain, of this product where there is one: (1, C, H, W)."""
        rows = np.flatnonzero((domains == domain) & own)
        rows = rows if len(rows) else np.flatnonzero(domains == domain)
        pixels = load([int(rows[random.integers(len(rows))])])
        return images.to_model(torch.from_numpy(pixels)).to(device)

    def latent_codes(domain: int) -> tuple[Tensor, Tensor]:
        drawn = random.standard_normal((1, sizes.latent_dim + sizes.noise_size), np.float32)
        z, noise = (
            torch.from_numpy(drawn).to(device).split([sizes.latent_dim, drawn.shape[1] - sizes.latent_dim], 1)
        )
        of = torch.tensor([defects.products.index(product)], device=device)
        return networks.mapping(z, torch.tensor([domain], device=device), noise, of)

    def reference_codes(x: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        return networks.encoder(x, torch.tensor([domain], device=device))

    def translate(x: Tensor, codes: tuple[Tensor, Tensor]) -> Tensor:
        translations = networks.translator(x, codes[0][None], codes[1][None]).images
        return translations[0]

    normal = photo_of(NORMAL_DOMAIN)
    types = range(1, len(defects.defect_types) + 1)
    latents = {domain: latent_codes(domain) for domain in types}
    cells = [normal, *(translate(normal, codes) for codes in latents.values())]
    for domain in types:
        reference = photo_of(domain)
        style, content = reference_codes(reference, domain)
        cells += [reference, *(translate(normal, (s, content)) for s in (style, latents[domain][0]))]
    shown = 1 + row % len(types)
    defect = photo_of(shown)
    healed = translate(defect, latent_codes(NORMAL_DOMAIN))
    cells += [defect, healed, translate(healed, reference_codes(defect, shown))]
    return list(images.from_model(torch.cat(cells)).cpu().numpy())
