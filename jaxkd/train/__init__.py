"""Training: a task goes in, checkpoints and metrics come out."""

from jaxkd.train.checkpoint import Checkpoints, load_run_params, load_run_weights, recorded_classes
from jaxkd.train.evaluation import evaluate
from jaxkd.train.loop import Loop, LoopSettings, Observation, train_loop
from jaxkd.train.members import FOLDER as MEMBERS
from jaxkd.train.members import best_member, to_json, to_value
from jaxkd.train.moving_average import initial_share_warning
from jaxkd.train.optimizer import (
    Schedule,
    decay_mask,
    make_optimizer,
    make_schedule,
    member_optimizer,
    timm_epoch_rates,
)
from jaxkd.train.preemption import StopRequest
from jaxkd.train.profile import StepProfile, StepTrace
from jaxkd.train.progress import TrainProgress
from jaxkd.train.run_folder import checkpoint_steps, differing_fields, find_run, read_config
from jaxkd.train.state import TrainState, create_state
from jaxkd.train.step import compile_batch_map, compile_eval_step, compile_train_step, train_step
from jaxkd.train.task import Inputs, Keys, Task, data_key, step_key
from jaxkd.train.timer import Clock
from jaxkd.train.writers import MetricWriter, read_metrics
