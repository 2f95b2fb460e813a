"""Plans of runs: the train step compiled for machines that are not here."""

from jaxkd.experiment.plan.chips import CHIPS, Chip, bf16_peak
from jaxkd.experiment.plan.result import make_plan
from jaxkd.experiment.plan.table import print_plan
