"""Conditions of molecule generators: subsets in requests, what networks see of them, guidance, texts, scaffolds."""

import pytest
import torch

from lightning_synth.conditions import check_guidance
from lightning_synth.datamodules import RequestDataModule
from lightning_synth.datamodules.requests import RequestDataset
from lightning_synth.errors import ConfigError, MissingExtraError
from lightning_synth.molecules.conditioning import PropertyConditions, guided, parse_scaffold
from lightning_synth.molecules.text import NgramEncoder, text_encoder
from lightning_synth.requests import KeyedRNG, SampleRequests, Strings

STATS = {"mean": 2.0, "std": 0.5, "min": 0.0, "max": 4.0}
SCHEMA = {"properties": {"logP": STATS, "qed": STATS}, "condition_rows": {"logP": [1.0, 3.0], "qed": [2.0, 2.0]}}


# Requests ----------------------------------------------------------------------------------------------------------


def make(condition, **options):
    return SampleRequests.make(4, condition=condition, schema=SCHEMA, names=("*",), **options)


def test_unnamed_conditions_are_unspecified_only_where_subsets_are_understood():
    partial = make({"logP": 2.5}, partial=True).condition
    assert (partial["logP"] == 2.5).all() and partial["qed"].isnan().all()
    assert make({"logP": 2.5}).condition["qed"].tolist() == [2.0] * 4
    assert make(None, partial=True).condition["qed"].tolist() == [2.0] * 4


def test_words_still_draw_from_training():
    condition = make({"logP": "empirical"}, partial=True).condition
    assert set(condition["logP"].tolist()) <= {1.0, 3.0} and condition["qed"].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, 2.0, float("nan"), 0.0]])
def test_non_finite_values_are_refused(value):
    with pytest.raises(ConfigError, match="non-finite"):
        make({"logP": value}, partial=True)


def test_ready_made_requests_may_be_partial():
    requests = make({"logP": 2.5}, partial=True)
    again = make(dict(requests.condition), partial=True)
    assert again.condition["qed"].isnan().all()
    with pytest.raises(ConfigError, match="non-finite"):
        make(dict(requests.condition))


def test_strings_are_carried_cut_and_joined():
    requests = make({"text": ["a", "b", None, "d"]}, partial=True, strings=("text", "scaffold"))
    assert "scaffold" not in requests.condition
    assert requests[torch.tensor([3, 2])].condition["text"].tolist() == ["d", ""]
    assert requests[torch.tensor([True, False, False, True])].condition["text"].tolist() == ["a", "d"]
    joined = SampleRequests.cat([requests[:1], requests[2:]]).to("cpu")
    assert joined.condition["text"].tolist() == ["a", "", "d"]
    assert make({"text": "x"}, strings=("text",)).condition["text"].tolist() == ["x"] * 4


def test_strings_where_none_are_understood_are_refused():
    with pytest.raises(ConfigError, match="'text' is not available"):
        make({"text": "x"})
    with pytest.raises(ConfigError, match="string"):
        make({"text": [1, 2, 3, 4]}, strings=("text",))


def test_request_datasets_cut_strings_row_by_row():
    dataset = RequestDataset(
        3, condition={"text": ["a", "b", "c"]}, schema=SCHEMA, names=("*",), partial=True, strings=("text",)
    )
    assert dataset.__getitems__([0, 2]).condition["text"].tolist() == ["a", "c"]
    assert isinstance(dataset[1].condition["text"], Strings)
    assert len(RequestDataModule(n=3, condition={"text": "a"}).predict_dataloader()) == 1


# Embedding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def conditions():
    torch.manual_seed(0)
    return PropertyConditions({**SCHEMA, "has_text": True, "num_classes": 2}, dim=8)


def test_unspecified_is_the_same_as_left_out(conditions):
    nan = torch.full((3,), torch.nan)
    assert torch.equal(
        conditions({"logP": nan, "qed": nan, "label": nan.new_full((3,), -1).long()}, 3), conditions({}, 3)
    )


def test_every_condition_matters_by_itself(conditions):
    base = conditions({}, 1)
    for name, value in {
        "logP": torch.tensor([2.0]),
        "qed": torch.tensor([2.0]),
        "label": torch.tensor([1]),
        "text": text_encoder("ngrams")(["ester"]),
    }.items():
        assert not torch.allclose(conditions({name: value}, 1), base), name


def test_close_values_are_told_apart(conditions):
    grid = torch.linspace(0.0, 4.0, 50)
    embedded = conditions({"logP": grid}, 50).detach()
    assert float(torch.pdist(embedded).min()) > 1e-3


def test_hiding_leaves_random_subsets(conditions):
    rows = 4000
    asked = {"logP": torch.ones(rows), "qed": torch.ones(rows), "label": torch.ones(rows).long()}
    hidden = conditions.hide(asked, KeyedRNG(0), dropout=0.2)
    shown = torch.stack([~hidden["logP"].isnan(), ~hidden["qed"].isnan()], 1)
    nothing = hidden["label"] < 0
    assert abs(float(nothing.float().mean()) - 0.2) < 0.03
    assert not shown[nothing].any() and shown[~nothing].any(1).all()
    assert abs(float((shown.sum(1) == 1).float().mean()) - 0.4) < 0.03
    assert torch.equal(conditions.specified(hidden, rows), ~nothing)


def test_missing_training_values_stay_missing(conditions):
    asked = {"logP": torch.tensor([torch.nan]), "qed": torch.tensor([1.0])}
    assert conditions.hide(asked, KeyedRNG(0), 0.0)["logP"].isnan().all()
    assert conditions(asked, 1).isfinite().all()


# Guidance ----------------------------------------------------------------------------------------------------------


def test_guidance_is_exact_at_its_ends():
    one, other = torch.tensor([3.0, -torch.inf]), torch.tensor([1.0, 2.0])
    assert torch.equal(guided(one, other, 0.0), other) and torch.equal(guided(one, other, 1.0), one)
    assert guided(one, other, 2.0)[0] == 5


def test_guidance_needs_a_trained_null_condition():
    check_guidance(1.0, 0.0)
    check_guidance(2.0, 0.1)
    with pytest.raises(ConfigError, match="never trained"):
        check_guidance(2.0, 0.0)
    with pytest.raises(ConfigError, match="finite"):
        check_guidance(float("nan"), 0.1)


# Texts -------------------------------------------------------------------------------------------------------------


def test_ngrams_are_the_same_everywhere():
    vector = NgramEncoder(width=32)(["An Ester"])[0]
    assert torch.equal(vector, NgramEncoder(width=32)(["an   ester "])[0])
    # Golden values: the hash is part of every checkpoint that was trained with a text.
    assert vector.nonzero()[:, 0].tolist() == [4, 8, 9, 11, 12, 15, 18, 23, 24, 26, 27]
    assert float(vector.norm()) == pytest.approx(1.0)


def test_texts_that_share_words_are_near():
    encode = NgramEncoder()
    ester, acid, salt = encode(["the molecule is a methyl ester", "the molecule is a methyl acid", "sodium chloride"])
    assert float(ester @ acid) > 0.5 > float(ester @ salt) + 0.3


def test_empty_and_short_texts():
    vectors = NgramEncoder(width=16)(["", "  ", "a"])
    assert not vectors[:2].any() and vectors[2].any()
    assert NgramEncoder(width=16)([]).shape == (0, 16)


def test_sentence_transformers_are_an_extra():
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="pip install sentence-transformers"):
            text_encoder("all-MiniLM-L6-v2")


# Scaffolds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smiles", "bare", "room"),
    [
        ("[*]c1ccccc1", "c1ccccc1", [1, 0, 0, 0, 0, 0]),
        ("[*]n1cccc1", "c1cc[nH]c1", [0, 0, 0, 1, 0]),
        ("[*]C([*])C", "CC", [0, 2]),
        ("C1CCNCC1", "C1CCNCC1", [1, 2, 2, 2, 2, 2]),
    ],
)
def test_room_of_scaffolds(smiles, bare, room):
    scaffold = parse_scaffold(smiles, ["C", "N"], max_atoms=20)
    assert scaffold.smiles == bare and sorted(scaffold.room) == sorted(room)
    assert scaffold.marked == ("*" in smiles)
    assert scaffold.pattern().GetNumAtoms() == len(scaffold.atoms)
