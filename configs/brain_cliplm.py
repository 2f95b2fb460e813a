"""EEG words to semantic anchors, by contrastive learning with a keyword vocabulary (Brain-CLIPLM, arXiv 2604.16370).

    jaxkd train --config=brain_cliplm:embedded --workdir=runs/eeg              (no data, no GPU)
    jaxkd decode --weights=runs/eeg --out=runs/eeg_report
    jaxkd train --config=brain_cliplm --workdir=runs/zuco --config.data.source=/data/zuco
    jaxkd train --config=brain_cliplm:split=cross_subject --workdir=runs/zuco_cross \\
        --config.data.source=/data/zuco
    jaxkd train --config=brain_cliplm:leave_out=ZAB --workdir=runs/zuco_zab \\
        --config.data.source=/data/zuco
    jaxkd train --config=brain_cliplm:network=linear --workdir=runs/zuco_linear \\
        --config.data.source=/data/zuco

The folder holds ZuCo's `results<SUBJECT>_<TASK>.mat` files of either corpus, or the exchange pickles. AdamW 5e-4,
cosine over 50 epochs, 256 sentences a batch, every text read by two people in it. The paper states none of this; all
numbers are choices of jaxkd, and docs/eeg.md says which parts of the method are the paper's. `embedded` trains on a
synthetic corpus whose right answers are known.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes

WORDS = {
    "embedded": "a synthetic corpus with known answers, a small run",
    "network": "linear, tiny, base or context",
    "split": "text, cross_subject or published",
    "leave_out": "the reader who is tested on, with the split cross_subject",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: words of `WORDS`."""
    words = fields.parse_arg(arg, WORDS)
    named = {k: words[k] for k in ("network", "split", "leave_out") if words.get(k)}
    return recipes.contrastive(fields.base(), embedded="embedded" in words, **named).lock()
