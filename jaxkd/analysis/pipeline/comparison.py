"""Two networks over the same images: CKA between their layers, angles between their last layers, layer suggestion."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.analysis import similarity
from jaxkd.analysis.layer_selection import suggest_pairs, suggest_stages
from jaxkd.analysis.pipeline.accumulators import Streamed
from jaxkd.analysis.pipeline.summary import BLOCK, plain
from jaxkd.analysis.similarity import hsic1
from jaxkd.models.contract import depth_taps

ENERGY = 0.99  # share of each network's variance that the compared subspaces hold (SVCCA)


def compare(teacher: Streamed, student: Streamed) -> dict[str, Any]:
    """An entry of "comparisons" in results.json, without the names.

    Returns:
      CKA (student layers x teacher layers), cosines of the principal angles, the pairs that SpectralKD's rule suggests,
      and notes that say why something is None.
    """
    notes: list[str] = []
    out: dict[str, Any] = {"teacher_layers": list(teacher.layers), "student_layers": list(student.layers)}
    out["cka"] = _cka(teacher, student, notes)
    out["principal_cosines"], out["principal_dims"] = _angles(teacher, student, notes)
    out["principal_energy"] = ENERGY
    out["suggestion"] = _suggestion(teacher, student)
    out["notes"] = notes
    return plain(out)


def _cka(teacher: Streamed, student: Streamed, notes: list[str]) -> np.ndarray | None:
    if not teacher.grams or not student.grams:
        notes.append("CKA needs Gram matrices over images, which were not asked for.")
        return None
    if teacher.images != student.images:
        notes.append(
            f"CKA compares images one by one, but {teacher.images} were read for the teacher and {student.images} for "
            "the student."
        )
        return None
    terms: list[tuple[np.ndarray, ...]] = []
    start = used = 0
    for student_gram, teacher_gram in zip(student.grams, teacher.grams, strict=True):
        stop = start + student_gram.shape[1] // student.gram_tokens
        fit = student.valid[start:stop].all(axis=1) & teacher.valid[start:stop].all(axis=1)
        start = stop
        count = int(fit.sum())
        fit = np.repeat(fit, student.gram_tokens)
        if count < 4:
            continue
        used += count
        k, m = (g[:, fit][:, :, fit] for g in (student_gram, teacher_gram))
        pairs = (hsic1(k, m), np.diagonal(hsic1(k, k)), np.diagonal(hsic1(m, m)))
        # Weighted by its images, since the last chunk may be smaller.
        terms.append(tuple(count * np.asarray(v, np.float64) for v in pairs))
    if not used:
        notes.append(
            f"CKA is estimated without bias from chunks of at least four images; there were {student.images} in all, "
            "so there is none."
        )
        return None
    if used < student.images:
        notes.append(
            f"CKA is over {used} of {student.images} images: what is not finite and chunks of fewer than four are left "
            "out."
        )
    return similarity.minibatch_cka(*(np.stack(v) for v in zip(*terms, strict=True)))


def _angles(teacher: Streamed, student: Streamed, notes: list[str]) -> tuple[np.ndarray | None, dict[str, int] | None]:
    a, b = student.spool, teacher.spool
    if a is None or b is None:
        notes.append("Principal angles need finite tokens of both last layers.")
        return None, None
    if a.shape[:2] != b.shape[:2]:
        notes.append(
            f"Principal angles compare token with token, but the student has {a.shape[0]} x {a.shape[1]} tokens in "
            f"{student.last} and the teacher {b.shape[0]} x {b.shape[1]} in {teacher.last}. CKA compares whole images "
            "and needs no equal grids."
        )
        return None, None
    student_valid, teacher_valid = (p.valid[:, p.layers.index(p.last)] for p in (student, teacher))
    if not np.array_equal(student_valid, teacher_valid):
        notes.append("Principal angles need the same images on both sides, but other features were not finite.")
        return None, None
    cross = np.zeros((a.shape[2], b.shape[2]))
    for start in range(0, len(a), BLOCK):
        x, y = (np.asarray(s[start : start + BLOCK], np.float64).reshape(-1, s.shape[2]) for s in (a, b))
        cross += x.T @ y
    assert student.moment is not None and teacher.moment is not None  # as there are tokens
    found = similarity.principal_angles(student.moment, teacher.moment, cross, energy=ENERGY)
    tokens = student.moment[2]
    if not len(found.cosines):
        notes.append("A network whose last layer does not vary has no directions to compare.")
        return None, None
    if sum(found.dims) * 10 > tokens:
        notes.append(
            f"Principal angles of {found.dims[0]} and {found.dims[1]} directions from {tokens} tokens: with so few "
            "tokens the angles are small by chance."
        )
    return found.cosines, {"student": found.dims[0], "teacher": found.dims[1]}


def _suggestion(teacher: Streamed, student: Streamed) -> dict[str, Any]:
    layers = [depth_taps(p.layers) for p in (teacher, student)]
    staged = [bool(names) and names[0].startswith("stage_") for names in layers]
    if all(staged):
        found = suggest_stages(len(layers[1]), len(layers[0]))
    elif all(layers) and not any(staged):
        profile = [np.nanmean(teacher.scalars["intensity"][:, teacher.layers.index(n)]) for n in layers[0]]
        found = suggest_pairs(np.asarray(profile), len(layers[1]))
    else:
        reason = "One network has no blocks or stages, or only one of the two has stages: nothing to pair by number."
        return {"pairs": [], "supported": False, "reason": reason}
    return {"pairs": [list(p) for p in found.pairs], "supported": found.supported, "reason": found.reason}
