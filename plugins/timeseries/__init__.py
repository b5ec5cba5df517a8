"""Generators of time-series windows."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.timeseries":
    raise ImportError("import lightning_synth.plugins.timeseries, not plugins.timeseries")

_HERE = "lightning_synth.plugins.timeseries"

GENERATORS = (
    GeneratorSpec(
        name="tsaug",
        target=f"{_HERE}.tsaug:TSAug",
        domain="timeseries",
        summary="The ten augmenters of tsaug as a class-preserving pipeline",
        reference="https://github.com/arundo/tsaug",
        conditions=("label", "*"),
        requires=("tsaug",),
        extra="timeseries",
        baseline=True,
    ),
    GeneratorSpec(
        name="smote",
        target=f"{_HERE}.smote:SMOTE",
        domain="timeseries",
        summary="Points between a window and its nearest neighbours of the same class",
        reference="doi:10.1613/jair.953",
        conditions=("label", "*"),
    ),
    GeneratorSpec(
        name="block_bootstrap",
        target=f"{_HERE}.block_bootstrap:BlockBootstrap",
        domain="timeseries",
        summary="Blocks of real windows of a class, put end to end",
        reference="doi:10.1080/01621459.1994.10476870",
        conditions=("label", "*"),
        floor=True,
    ),
    GeneratorSpec(
        name="iaaft",
        target=f"{_HERE}.iaaft:IAAFT",
        domain="timeseries",
        summary="Surrogates with the values and the spectrum of a real window and no other structure",
        reference="doi:10.1103/PhysRevLett.77.635",
        conditions=("label", "*"),
        tiny={"num_iterations": 10},
        floor=True,
    ),
    GeneratorSpec(
        name="normal_transplant",
        target=f"{_HERE}.normal_transplant:NormalTransplant",
        domain="timeseries",
        summary="A fault window plus the scaled fluctuation of a normal window",
        reference="arXiv:2511.15174 (as its trivial form)",
        conditions=("label", "*"),
    ),
    GeneratorSpec(
        name="bearing_simulator",
        target=f"{_HERE}.bearing_simulator:BearingSimulator",
        domain="timeseries",
        summary="Impacts at bearing defect frequencies, added to real healthy windows",
        reference="doi:10.1115/1.1569940",
        conditions=("label", "*"),
        tiny={
            "sampling_rate": 1000.0,
            "rpm": 1800.0,
            "bearing": {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0},
            "parts": ["N", "IR", "OR"],
        },
    ),
    GeneratorSpec(
        name="diffusion_ts",
        target=f"{_HERE}.diffusion_ts:DiffusionTS",
        domain="timeseries",
        summary="Diffusion transformer with trend and Fourier seasonality",
        reference="arXiv:2403.01742",
        conditions=("label", "*"),
        tiny={"d_model": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "num_steps": 5},
    ),
    GeneratorSpec(
        name="fault_diffusion",
        target=f"{_HERE}.fault_diffusion:FaultDiffusion",
        domain="timeseries",
        summary="Few-shot faults: a frozen diffusion model of normal windows plus difference adapters",
        reference="arXiv:2511.15174",
        conditions=("label", "*"),
        tiny={"d_model": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "num_steps": 5},
    ),
)

__getattr__ = lazy_classes(GENERATORS)
