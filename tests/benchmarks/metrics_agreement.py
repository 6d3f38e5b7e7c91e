"""Do our metrics agree with the packages that own them? With torch-fidelity (FID, KID, precision and recall),
lpips and timm, on the same features and weights. They need torchvision, hence a folder of their own:

    .venv/bin/pip install --no-deps --target fidelity torch-fidelity==0.4.0 lpips==0.1.4 timm==1.0.31 \\
        torchvision==0.28.0 tqdm && rm -r fidelity/tests
    PYTHONPATH=fidelity .venv/bin/python tests/benchmarks/metrics_agreement.py

Prints theirs, ours and the difference; ends with an error above 1e-4 (relative, or absolute below 1). The weights
are random ones, made here and loaded by path: the true ones of Inception and AlexNet are not ours to hand out.
"""
# pyright: reportMissingImports=false

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4

spec = importlib.util.find_spec("torchvision")
if spec is None or not spec.submodule_search_locations:
    raise SystemExit(__doc__)
try:
    torch.ops.load_library(spec.submodule_search_locations[0] + "/_C.so")
except (
    OSError
):  # a torchvision for CUDA beside a torch for CPUs: two operators that it only names are missing
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import lpips  # noqa: E402
import timm  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

from raygen import images  # noqa: E402
from raygen.evaluate.classifier import TimmBackbone  # noqa: E402
from raygen.evaluate.features import LPIPS, Inception  # noqa: E402
from raygen.metrics import frechet_distance, kernel_distance, precision_recall  # noqa: E402

worst = 0.0


def compare(name: str, theirs: float, ours: float) -> None:
    global worst
    difference = abs(theirs - ours) / max(1.0, abs(theirs))
    worst = max(worst, difference)
    print(f"{name:58} {theirs:14.8f} {ours:14.8f}   {difference:.1e}", flush=True)


def metrics() -> None:
    """On features that are, like a network's, not negative and correlated."""
    random = np.random.default_rng(0)
    for num_fake, num_real, dim in ((600, 300, 64), (1500, 1200, 256), (200, 150, 1280)):
        mix = random.normal(size=(dim, dim)) / dim**0.5
        fake, real = (
            np.maximum(random.normal(size=(rows, dim)) @ mix + shift, 0)
            for rows, shift in ((num_fake, 0.3), (num_real, 0.0))
        )
        sides: Any = [torch.from_numpy(some) for some in (fake, real)]
        where = f"{num_fake} against {num_real}, {dim} features"
        statistics = [fid_features_to_statistics(side) for side in sides]
        theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        compare(f"Fréchet distance, {where}", theirs, frechet_distance(fake, real))
        size = min(100, num_fake, num_real)
        found = kid_features_to_metric(
            *sides, kid_subsets=50, kid_subset_size=size, rng_seed=7, verbose=False
        )
        ours = kernel_distance(fake, real, num_subsets=50, subset_size=size, seed=7)
        compare(f"kernel distance, {where}", found["kernel_inception_distance_mean"], ours.mean)
        compare("  its standard deviation", found["kernel_inception_distance_std"], ours.std)
        found = prc_features_to_metric(*sides, prc_neighborhood=3, verbose=False)
        share = precision_recall(real, fake, neighbours=3)
        compare("  precision", found["precision"], share.precision)
        compare("  recall", found["recall"], share.recall)


class _Unloaded(FeatureExtractorInceptionV3):
    """Inception with the weights that it was built with."""

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state_dict or self.state_dict(), *args, **kwargs)


def inception(folder: Path, pixels: np.ndarray) -> None:
    torch.save({}, folder / "none.pth")
    theirs = _Unloaded("theirs", ["2048"], feature_extractor_weights_path=str(folder / "none.pth")).eval()
    torch.save(theirs.state_dict(), folder / "inception.pth")
    (features,) = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
    ours = Inception(str(folder / "inception.pth"), torch.device("cpu"))(pixels)
    compare("Inception by path: first feature", float(features[0, 0]), float(ours[0, 0]))
    compare("  largest difference of 2048", 0.0, float(np.abs(features.detach().numpy() - ours).max()))


def perceptual(folder: Path, pixels: np.ndarray) -> None:
    theirs: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    trunk = {f"features.{key.split('.', 1)[1]}": value for key, value in theirs.net.state_dict().items()}
    torch.save(trunk, folder / "alexnet.pth")
    x = images.to_model(torch.from_numpy(pixels)).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = theirs(x[:1], x[1:2]).item()
    vectors = LPIPS(str(folder / "alexnet.pth"), torch.device("cpu"))(pixels)
    compare("LPIPS of two images", expected, float(np.square(vectors[0] - vectors[1]).sum()))


def backbones(folder: Path) -> None:
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    for name in ("resnet50", "efficientnet_b4"):
        whole = timm.create_model(name, pretrained=False).eval()
        torch.save(whole.state_dict(), folder / f"{name}.pth")
        ours = TimmBackbone(name, str(folder / f"{name}.pth")).eval()
        mean, std = (torch.tensor(whole.pretrained_cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        with torch.inference_mode():
            expected = whole.forward_features(((x + 1) / 2 - mean) / std).mean((2, 3))
            difference = (ours(x) - expected).abs().max().item()
        compare(f"timm's {name} by path: largest difference of its features", 0.0, difference)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{'':58} {'theirs':>14} {'ours':>14}   difference")
    metrics()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 1), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        inception(Path(folder), pixels)
        perceptual(Path(folder), pixels)
        backbones(Path(folder))
    print(f"largest difference {worst:.1e} (allowed: {TOLERANCE:g})")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
