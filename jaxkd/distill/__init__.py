"""Knowledge distillation: which layers are compared, how the teacher is read, and what is minimised."""

from jaxkd.distill.objective import Objective, Term
from jaxkd.distill.pairing import check_pairs, profile_taps, resolve_pairs, suggest
from jaxkd.distill.presets import PRESETS, preset
from jaxkd.distill.schedules import weight_schedule
from jaxkd.distill.teacher import Teacher

__all__ = [
    "PRESETS",
    "Objective",
    "Teacher",
    "Term",
    "check_pairs",
    "preset",
    "profile_taps",
    "resolve_pairs",
    "suggest",
    "weight_schedule",
]
