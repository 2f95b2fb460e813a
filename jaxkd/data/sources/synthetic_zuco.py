"""A synthetic corpus of word-level EEG whose right answers are known: "embedded:synthetic_zuco?snr=16&subjects=12".

    settings = SyntheticZuco.parse("embedded:synthetic_zuco?snr=16&subjects=12&seed=0")
    corpus = synthetic_corpus(settings)
    words, templates = synthetic_templates(settings)     # templates[s, w]: EEG of a word without noise

The EEG of a word w that subject s fixates is offset_s + gain_s (sqrt(snr) c_w R_s M + noise): unit codes c_w, a
rotation R_s of the subject, a mixing matrix M with orthonormal rows, and noise of unit variance in each of the 840
features. The codes are orthonormal as long as vocabulary and function words together are at most 840. Then the best
decoder of n words scores the right one of N sentences that differ everywhere sqrt(n snr) standard deviations higher,
and `analysis.oracle_topk` is how often it can be among the first k.

Sentences consist of invented words of two to four syllables, the more frequent the lower their number (Zipf, exponent
0.7), and of function words of English; the first word is capitalised and the last has a full stop.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jaxkd.data.sources.eeg_corpus import FEATURES, GAZE, MAX_WORDS, TASKS, EegCorpus, total_counts
from jaxkd.errors import DataError, check_choice, check_range, did_you_mean

SYNTHETIC_ZUCO = "embedded:synthetic_zuco"
EMBEDDED_EEG = (SYNTHETIC_ZUCO,)  # all corpora of EEG without files
FUNCTION_WORDS = (
    *("the", "of", "and", "in", "to", "a", "was", "for", "with", "on", "by", "as"),
    *("he", "his", "from", "at", "it", "is", "that", "an"),
)
LENGTH_FEATURES = 8  # that carry the number of letters with `length_leak`
_CONSONANTS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aiou", ("", "", "n", "r", "l", "s")  # no "e": hardly an English word
_ZIPF = 0.7
_MEAN_LETTERS = 6.0
# Streams of random numbers that must not meet.
_WORDS, _TEXTS, _MIXING, _SUBJECT, _ROTATION, _HOLES = range(6)


@dataclass(frozen=True)
class SyntheticZuco:
    """Settings of the corpus; in a text they follow "embedded:synthetic_zuco?" as name=value, joined by "&".

    Attributes:
      snr: signal-to-noise ratio of a fixated word, of the best decoder; 0 is noise alone.
      subjects: readers, "SYN01", "SYN02", ...; more of them do not change the first ones.
      sentences: different texts of each task.
      vocabulary: content words.
      words: fewest and most words of a sentence, "6-14".
      function_words: share of the words of a sentence that are function words.
      skip: share of the words that a reader does not fixate.
      skip_by_length: short words are skipped more often.
      nan_word: share of the fixated words whose EEG is NaN.
      missing_sentence: share of the readings that are missing, at random.
      holes: share of the sentences that a subject did not read, a block at a place of its own. Then the subject tells
        something about the sentence (a planted leak).
      duplicates: repeated texts after the others of each task, under a new number (a planted leak between parts that
        are split by number).
      length_leak: how much the first 8 features rise with each letter of the word (a planted leak); 0 is none.
      gaze_letters: how much fixations lengthen with the letters of a word; 0 makes gaze mere noise.
      subject_rotation: how differently the subjects code the words, from 0 (alike) to 1 (the codes of one subject tell
        nothing about those of another).
      offsets: standard deviation of each subject's constant in each feature.
      gains: standard deviation of the logarithm of each subject's gain.
      tasks: of "SR", "NR" and "TSR", joined by commas.
      seed: of everything.
    """

    snr: float = 4.0
    subjects: int = 12
    sentences: int = 150
    vocabulary: int = 150
    words: str = "6-14"
    function_words: float = 0.3
    skip: float = 0.3
    skip_by_length: bool = True
    nan_word: float = 0.0
    missing_sentence: float = 0.0
    holes: float = 0.0
    duplicates: int = 0
    length_leak: float = 0.0
    gaze_letters: float = 1.0
    subject_rotation: float = 0.0
    offsets: float = 0.5
    gains: float = 0.2
    tasks: str = "NR"
    seed: int = 0

    @classmethod
    def parse(cls, spec: str) -> SyntheticZuco:
        """From "embedded:synthetic_zuco" or "embedded:synthetic_zuco?name=value&...".

        Raises:
          DataError: an unknown name, or a value that is not of its kind or out of range.
        """
        kinds = {f.name: type(f.default) for f in fields(cls)}
        values: dict[str, Any] = {}
        rest = spec.removeprefix(SYNTHETIC_ZUCO).removeprefix("?")
        for part in rest.split("&") if rest else ():
            name, equals, text = part.partition("=")
            if name not in kinds or not equals:
                raise DataError(
                    f'"{spec}" has "{part}", which is not a setting of the synthetic corpus.'
                    f"{did_you_mean(name, kinds)} Write name=value; the settings are {', '.join(kinds)}."
                )
            values[name] = _value(f"{name} of {SYNTHETIC_ZUCO}", text, kinds[name])
        return cls(**values)

    def __post_init__(self) -> None:
        def check(name: str, **bounds: Any) -> None:
            check_range(f"{name} of {SYNTHETIC_ZUCO}", getattr(self, name), **bounds, error=DataError)

        for name in ("snr", "gaze_letters", "offsets", "gains"):
            check(name, least=0)
        check("subject_rotation", least=0, most=1)
        check("length_leak")
        for name in ("function_words", "skip", "nan_word", "missing_sentence", "holes"):
            check(name, least=0, below=1)
        for name, least in (("subjects", 1), ("sentences", 1), ("vocabulary", 2), ("duplicates", 0), ("seed", 0)):
            check(name, least=least, whole=True)
        for task in self.tasks.split(","):
            check_choice(f"tasks of {SYNTHETIC_ZUCO}", task, TASKS, error=DataError)
        _, most = self.word_range
        if most > self.vocabulary:
            raise DataError(
                f'words="{self.words}" of {SYNTHETIC_ZUCO} asks for more words than vocabulary={self.vocabulary} has, '
                "and no content word is twice in a sentence. Give a larger vocabulary."
            )

    @property
    def word_range(self) -> tuple[int, int]:
        """Fewest and most words of a sentence."""
        low, _, high = self.words.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low)):
            raise DataError(
                f'words="{self.words}" of {SYNTHETIC_ZUCO} is not a range of words. Give it as "6-14", or one number.'
            )
        return int(low), int(high or low)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, each once, in the order of `TASKS`."""
        return tuple(task for task in TASKS if task in self.tasks.split(","))

    @property
    def subject_names(self) -> tuple[str, ...]:
        """Codes of the subjects."""
        return tuple(f"SYN{s + 1:02d}" for s in range(self.subjects))

    def rng(self, *stream: int) -> np.random.Generator:
        """The generator of one stream of random numbers."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, *stream))))


def _value(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        check_choice(name, text.lower(), ("0", "1", "false", "true"), error=DataError)
        return text.lower() in ("1", "true")
    try:
        return kind(text)
    except ValueError:
        raise DataError(
            f'{name} is "{text}", which is not a {"whole number" if kind is int else "number"}. Give one.'
        ) from None


def _vocabulary(settings: SyntheticZuco) -> tuple[str, ...]:
    """The content words, invented, then the function words."""
    rng = settings.rng(_WORDS)
    words: dict[str, None] = {}
    while len(words) < settings.vocabulary:
        syllables = rng.integers(2, 5)
        letters = [source[rng.integers(len(source))] for _ in range(syllables) for source in (_CONSONANTS, _VOWELS)]
        words["".join(letters) + _CODAS[rng.integers(len(_CODAS))]] = None
    return (*words, *FUNCTION_WORDS)


def _letters(settings: SyntheticZuco) -> np.ndarray:
    return np.array([len(word) for word in _vocabulary(settings)])


def _texts(settings: SyntheticZuco, task: str) -> list[np.ndarray]:
    """Numbers of the words of each sentence of a task; duplicates at the end."""
    rng = settings.rng(_TEXTS, TASKS.index(task))
    low, high = settings.word_range
    lengths = rng.integers(low, high + 1, settings.sentences)
    # The largest of log p + Gumbel noise are a draw without replacement with probabilities p.
    frequency = -_ZIPF * np.log(np.arange(1, settings.vocabulary + 1))
    texts = []
    for length in lengths.tolist():
        order = np.argsort(-(frequency + rng.gumbel(size=settings.vocabulary)))
        text = order[:length]
        is_function = rng.random(length) < settings.function_words
        if is_function.all():
            is_function[rng.integers(length)] = False
        functions = settings.vocabulary + rng.integers(len(FUNCTION_WORDS), size=length)
        texts.append(np.where(is_function, functions, rng.permutation(text)))
    return texts + [texts[i] for i in rng.integers(settings.sentences, size=settings.duplicates).tolist()]


def _sentence(words: list[str]) -> str:
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


def _codes(settings: SyntheticZuco) -> tuple[np.ndarray, np.ndarray]:
    """Unit codes of the words (K, d), and the mixing matrix (d, 840) with orthonormal rows."""
    rng = settings.rng(_MIXING)
    words = settings.vocabulary + len(FUNCTION_WORDS)
    size = min(words, FEATURES)
    mixing = np.linalg.qr(rng.standard_normal((FEATURES, size)))[0].T
    if words <= FEATURES:
        return np.eye(words), mixing
    codes = rng.standard_normal((words, size))
    return codes / np.linalg.norm(codes, axis=1, keepdims=True), mixing


def _rotation(settings: SyntheticZuco, subject: int, size: int) -> np.ndarray:
    """An orthonormal matrix (Cayley's transform of a skew-symmetric one), the identity for strength 0.

    The eigenvalues of the skew-symmetric matrix follow a semicircle of variance 2, so that the mean cosine of the
    angles of rotation is 0 at strength 1. Stronger ones would turn the codes of all subjects towards -1.
    """
    if not settings.subject_rotation:
        return np.eye(size)
    skew = settings.rng(_ROTATION, subject).standard_normal((size, size))
    skew = (skew - skew.T) * (settings.subject_rotation / np.sqrt(size))
    return np.linalg.solve(np.eye(size) + skew, np.eye(size) - skew)


def _signal(settings: SyntheticZuco, codes: np.ndarray, mixing: np.ndarray, subject: int) -> np.ndarray:
    """(K, 840) float32: the EEG of each word before noise, gain and offset."""
    signal = np.sqrt(settings.snr) * (codes @ _rotation(settings, subject, codes.shape[1]) @ mixing)
    signal[:, :LENGTH_FEATURES] += settings.length_leak * (_letters(settings)[:, None] - _MEAN_LETTERS)
    return signal.astype(np.float32)


def _subject_scale(settings: SyntheticZuco, rng: np.random.Generator) -> tuple[np.float32, np.ndarray]:
    """Gain and offset (840,) of a subject: the first numbers of its stream."""
    gain, offset = np.exp(settings.gains * rng.standard_normal()), settings.offsets * rng.standard_normal(FEATURES)
    return np.float32(gain), offset.astype(np.float32)


def synthetic_templates(settings: SyntheticZuco) -> tuple[tuple[str, ...], np.ndarray]:
    """The right answers.

    Returns:
      All words in lower case, content words first, and (subjects, words, 840) float32: the EEG of each word of each
      subject without noise.
    """
    codes, mixing = _codes(settings)
    templates = []
    for s in range(settings.subjects):
        gain, offset = _subject_scale(settings, settings.rng(_SUBJECT, s))
        templates.append(gain * _signal(settings, codes, mixing, s) + offset)
    return _vocabulary(settings), np.stack(templates)


class _Stimuli:
    """The sentences of all tasks, and their words one after another."""

    def __init__(self, settings: SyntheticZuco):
        words = _vocabulary(settings)
        tasks = {task: _texts(settings, task) for task in settings.task_names}
        texts = [text for of_task in tasks.values() for text in of_task]
        self.task = np.repeat(list(tasks), [len(of_task) for of_task in tasks.values()])
        self.index = np.concatenate([np.arange(len(of_task)) for of_task in tasks.values()])
        self.text = [_sentence([words[w] for w in text.tolist()]) for text in texts]
        self.word_count = np.array([len(text) for text in texts])
        self.token = np.concatenate(texts)
        self.token_text = [word for text in self.text for word in text.split(" ")]
        self.sentence = np.repeat(np.arange(len(texts)), self.word_count)
        self.position = np.arange(len(self.token)) - np.repeat(
            np.cumsum(self.word_count) - self.word_count, self.word_count
        )
        letters = _letters(settings)[self.token]
        self.skip = np.full(len(letters), settings.skip)
        if settings.skip_by_length and np.ptp(letters):
            shortness = letters.max() - letters
            self.skip = np.minimum(settings.skip * shortness / shortness.mean(), 0.95)
        self.letters = letters


def _fixated(settings: SyntheticZuco, stimuli: _Stimuli, rng: np.random.Generator, subject: int) -> np.ndarray:
    """(tokens,) bool: which words a subject fixates, none in sentences that are missing."""
    sentences = len(stimuli.text)
    fixated = rng.random(len(stimuli.token)) >= stimuli.skip
    # A sentence is read with one fixation at least: on its longest word.
    longest = np.lexsort((-stimuli.letters, stimuli.sentence))[np.cumsum(stimuli.word_count) - stimuli.word_count]
    fixated[longest[np.bincount(stimuli.sentence, fixated, minlength=sentences) == 0]] = True
    missing = rng.random(sentences) < settings.missing_sentence
    for task in settings.task_names:
        mine = np.flatnonzero(stimuli.task == task)
        length = round(settings.holes * len(mine))
        place = settings.rng(_HOLES, subject, TASKS.index(task)).integers(len(mine))
        missing[mine[(place + np.arange(length)) % len(mine)]] = True
    return fixated & ~missing[stimuli.sentence]


def _gaze(settings: SyntheticZuco, letters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 6) float32, the columns of `GAZE`; a single fixation duration only where there was one fixation."""
    long = settings.gaze_letters * (letters - _MEAN_LETTERS)
    fixations = 1 + rng.poisson(0.35 * np.exp(0.2 * long))
    first = rng.gamma(16.0, 13.0, len(letters)) * np.exp(0.03 * long)
    more = rng.gamma(9.0, 20.0, len(letters)) * (fixations - 1)
    in_first_pass = rng.random(len(letters))
    duration = first + more * in_first_pass
    regressions = rng.exponential(40.0, len(letters)) * (rng.random(len(letters)) < 0.3)
    single = np.where(fixations == 1, first, np.nan)
    columns = {"nFixations": fixations, "FFD": first, "SFD": single, "GD": duration}
    columns |= {"GPT": duration + regressions, "TRT": first + more}
    return np.stack([columns[name] for name in GAZE], axis=1).astype(np.float32)


def synthetic_corpus(settings: SyntheticZuco) -> EegCorpus:
    """The corpus of `settings`; equal settings give equal corpora, bit for bit.

    12 subjects x 150 sentences take about a second.
    """
    stimuli = _Stimuli(settings)
    codes, mixing = _codes(settings)
    rngs = [settings.rng(_SUBJECT, s) for s in range(settings.subjects)]
    scales = [_subject_scale(settings, rng) for rng in rngs]
    tokens = [np.flatnonzero(_fixated(settings, stimuli, rng, s)) for s, rng in enumerate(rngs)]
    ends = np.cumsum([len(mine) for mine in tokens])
    eeg = np.empty((int(ends[-1]), FEATURES), np.float32)
    gaze = []
    signal = _signal(settings, codes, mixing, 0)
    for s, (rng, mine, (gain, offset)) in enumerate(zip(rngs, tokens, scales, strict=True)):
        if settings.subject_rotation and s:
            signal = _signal(settings, codes, mixing, s)
        part = eeg[ends[s] - len(mine) : ends[s]]
        rng.standard_normal(dtype=np.float32, out=part)
        part += signal[stimuli.token[mine]]
        part *= gain
        part += offset
        part[rng.random(len(mine)) < settings.nan_word] = np.nan
        gaze.append(_gaze(settings, stimuli.letters[mine], rng))
    return _assemble(settings, stimuli, tokens, eeg, np.concatenate(gaze))


def _assemble(
    settings: SyntheticZuco, stimuli: _Stimuli, tokens: list[np.ndarray], eeg: np.ndarray, gaze: np.ndarray
) -> EegCorpus:
    """The columns of the corpus, from the words that each subject fixated."""
    sentences = len(stimuli.text)
    lengths = [np.bincount(stimuli.sentence[mine], minlength=sentences) for mine in tokens]
    read = [np.flatnonzero(of_subject) for of_subject in lengths]
    sentence, token = np.concatenate(read), np.concatenate(tokens)
    words = np.concatenate([of_subject[mine] for of_subject, mine in zip(lengths, read, strict=True)])
    nan = np.isnan(eeg).any(1)
    counts, end = {}, 0
    for name, of_subject, mine in zip(settings.subject_names, lengths, tokens, strict=True):
        end += len(mine)
        counts[name] = {
            "readings": int((of_subject > 0).sum()),
            "words": len(mine),
            "missing_sentences": int((of_subject == 0).sum()),
            "nan_words": int(nan[end - len(mine) : end].sum()),
            "long_readings": int((of_subject > MAX_WORDS).sum()),
            "cut_words": int((of_subject - MAX_WORDS).clip(0).sum()),
        }
    return EegCorpus(
        subject=np.repeat(settings.subject_names, [len(mine) for mine in read]),
        corpus=np.full(len(sentence), "synthetic"),
        task=stimuli.task[sentence],
        index=stimuli.index[sentence],
        text=tuple(stimuli.text[i] for i in sentence.tolist()),
        word_count=stimuli.word_count[sentence],
        start=np.concatenate([[0], np.cumsum(words)]),
        word=tuple(stimuli.token_text[t] for t in token.tolist()),
        position=stimuli.position[token].astype(np.int32),
        eeg=eeg,
        gaze=gaze,
        facts={"source": SYNTHETIC_ZUCO, "settings": {f.name: getattr(settings, f.name) for f in fields(settings)}}
        | total_counts(counts),
    )
