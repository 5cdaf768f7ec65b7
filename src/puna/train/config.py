"""The settings of the training loop. They mean the same to pretraining, SFT and DPO."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.train.machine import DeviceChoice, Precision
from puna.train.optim import OptimConfig
from puna.train.schedule import ScheduleConfig
from puna.train.tracking import TrackingConfig


class TiersConfig(Config):
    """Where checkpoints are kept beside the run folder, and how training waits for them."""

    saving: Literal["auto", "always", "never"] = "auto"
    """auto: copy the state in memory and write behind training, if memory for the copy is free; always; never."""
    local: Path | None = None
    """Folder on each machine's own disk, for runs on several machines; the run folder then has no checkpoints."""
    replicas: int = Field(default=1, ge=0)
    """With local: further machines that keep a copy of each file."""
    durable: str = ""
    """Storage that outlives the machines, as fsspec names it (s3://bucket/run); empty: none."""
    durable_every_seconds: float = Field(default=3600.0, ge=0.0)
    """Shortest time between two uploads; 0 uploads every checkpoint."""
    durable_keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept there."""
    durable_keep_every_steps: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this are kept there for good; 0 keeps none for that."""


class TrainConfig(Config):
    """How long, how large a step, how fast, and when to look and to save."""

    steps: int = Field(default=1_000, ge=1)
    """Optimizer steps of the whole run."""
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients make one step."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    evaluate_every_steps: int = Field(default=0, ge=0)
    """Steps between two evaluations; 0 evaluates only at the end."""
    save_every_steps: int = Field(default=0, ge=0)
    """Steps between two checkpoints; 0 saves by time alone."""
    save_every_seconds: float = Field(default=300.0, ge=0.0)
    """Longest time between two checkpoints, in seconds; 0 saves by steps alone."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    keep_every_steps: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this are kept for good; 0 keeps none for that."""
    tiers: TiersConfig = TiersConfig()
    """Further places for checkpoints."""
    activations: Literal["keep", "recompute", "offload"] = "keep"
    """What blocks leave for the backward, on one process: all they need; their input only, and they are run again (a
    third more work); or that input in a file (on a GPU: in pinned host memory) until it is needed."""
    tracking: TrackingConfig = TrackingConfig()
    """TensorBoard and Weights & Biases."""
    device: DeviceChoice = "auto"
    """Where to train: auto takes CUDA when it is there."""
    precision: Precision = "auto"
    """auto: fp32 on a CPU; on CUDA bf16 with fp32 master weights."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves it to PyTorch. Another number can change the last bits of a run."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        decay = round(self.schedule.decay_share * self.steps) if self.schedule.kind == "wsd" else 0
        if self.schedule.warmup_steps + decay > self.steps:
            parts = f"warmup_steps {self.schedule.warmup_steps}" + (f" and {decay} decay steps" if decay else "")
            raise ValueError(f"{parts} do not fit into {self.steps} steps; set schedule.warmup_steps lower")
        return self
