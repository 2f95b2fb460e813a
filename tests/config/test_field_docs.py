"""Meanings, types and defaults of the config's fields, read off its comments."""

from jaxkd.config import fields
from jaxkd.config.field_docs import field_docs


def test_every_field_has_a_meaning_its_type_and_its_default():
    docs = {doc.name: doc for doc in field_docs()}
    assert set(docs) == {*fields.flatten(fields.base()), "student.args", "teacher.args"}
    assert not [name for name, doc in docs.items() if len(doc.meaning.split()) < 3]
    accumulate = docs["optimizer.accumulate"]  # a comment beside the field
    assert accumulate[1:] == ("int", 1, "micro-batches that a step divides its batch into")
    assert docs["teacher.weights"].meaning.startswith("A file, a Hugging Face id")  # above, in a dict, by a call
    assert docs["stages"].meaning.endswith('take "stage:<name>" as weights.')  # of two lines
    assert docs["distill.projector_weight_decay"].kind == "float"  # though its default is None


def test_a_pattern_chooses_fields():
    assert [doc.name for doc in field_docs("MESH.*")] == ["mesh.data", "mesh.fsdp", "mesh.model"]
    assert "train.batch_size" in [doc.name for doc in field_docs("batch")]
    assert not field_docs("no such field")
