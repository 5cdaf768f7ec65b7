"""The settings of the training loop. They mean the same to pretraining, SFT and DPO."""

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.train.machine import DeviceChoice, Precision
from puna.train.optim import OptimConfig
from puna.train.schedule import ScheduleConfig


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
