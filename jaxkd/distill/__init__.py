"""Knowledge distillation: objectives and their terms, layer pairing, weight schedules and the teacher."""

from jaxkd.distill import feature_terms, logit_terms, relation_terms  # they register the terms
from jaxkd.distill.objective import ModelOutput, Objective, Term
from jaxkd.distill.pairing import check_pairs, profile_taps, resolve_pairs, suggest
from jaxkd.distill.population import PopulationObjective, join_objectives
from jaxkd.distill.presets import PRESETS, preset
from jaxkd.distill.schedules import weight_schedule
from jaxkd.distill.stored_logits import LogitFormat
from jaxkd.distill.teacher import Teacher
from jaxkd.distill.terms import build_objective, check_terms, register_term
