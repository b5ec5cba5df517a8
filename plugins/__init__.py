"""The generators: one file each, one line each in the `GENERATORS` of their folder."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins":
    raise ImportError("import lightning_synth.plugins, not plugins")

_HERE = "lightning_synth.plugins.baselines"

GENERATORS = (
    GeneratorSpec(
        name="bootstrap",
        target=f"{_HERE}:Bootstrap",
        domain="any",
        summary="Copies of real training items: the memoriser",
        reference="doi:10.1214/aos/1176344552",
        conditions=("label", "*"),
        floor=True,
        baseline=True,
    ),
    GeneratorSpec(
        name="jitter",
        target=f"{_HERE}:Jitter",
        domain="timeseries",
        summary="Real windows plus white noise of a share of each channel's standard deviation",
        reference="doi:10.1371/journal.pone.0254841",
        conditions=("label", "*"),
        floor=True,
    ),
    GeneratorSpec(
        name="interpolate",
        target=f"{_HERE}:Interpolate",
        domain="timeseries",
        summary="Mixup of two windows of one class",
        reference="arXiv:1710.09412",
        conditions=("label", "*"),
    ),
)

__getattr__ = lazy_classes(GENERATORS)
