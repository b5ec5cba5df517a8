"""Molecules as token sequences: exact round trips in any order, and masks under which anything ends as a molecule."""

import pytest
import torch

from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules import BOND_TYPES, canonical_smiles, encode, fit_vocabulary, to_smiles, valence_table
from lightning_synth.plugins.molecule.molecule_sequence_tokens import END, PAD, Grammar, MoleculeTokens, depth_first
from lightning_synth.schema import collate

MOLECULES = [
    "c1ccccc1",
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[N+](=O)[O-]",
    "C#CC1CC1",
    "Cc1ncc[nH]1",
    "C1CC2CC1C2",
    "FS(F)(F)(F)(F)F",
    "C12C3C4C1C5C2C3C45",
    "O=P(O)(O)OCC1OC(n2cnc3c(N)ncnc32)CC1O",
    "C",
]
SALTS = ["C[N+](C)(C)C.[Cl-]", "[Na+].[O-]C=O", "CCO"]


def setup(smiles):
    types = fit_vocabulary(smiles)
    items = [encode(text, types) for text in smiles]
    schema = {"domain": "molecule", "max_nodes": 40, "atom_types": types, "bond_types": list(BOND_TYPES)}
    return schema, MoleculeTokens(schema, valence_table(schema)), DenseGraphs.from_batch(collate(items, schema))


def in_order(graphs):
    return torch.arange(graphs.mask.shape[1]).expand_as(graphs.mask)


def test_depth_first_visits_neighbours_of_the_last_atom_first():
    # 0-1, 1-2, 1-3, 3-0, and 4 apart
    adjacency = torch.zeros(1, 6, 6, dtype=torch.bool)
    for one, other in ((0, 1), (1, 2), (1, 3), (3, 0)):
        adjacency[0, one, other] = adjacency[0, other, one] = True
    mask = torch.arange(6)[None] < 5
    tree = depth_first(adjacency, mask, torch.tensor([[0, 1, 3, 2, 4, 5]]))
    assert tree.order.tolist() == [[0, 1, 3, 2, 4, 5]]
    assert tree.parent[0, :5].tolist() == [-1, 0, 1, 1, -1]
    assert tree.depth[0, :5].tolist() == [0, 1, 2, 2, 0]


def test_benzene_is_written_as_the_docstring_says():
    _, codec, graphs = setup(["c1ccccc1"])
    tokens = codec.encode(graphs, in_order(graphs))[0]
    order, children, distance = codec.order[tokens], codec.children[tokens], codec.distance[tokens]
    assert children.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert distance.tolist() == [0, 0, 0, 0, 0, 0, 5, 0]
    assert sorted(order.tolist()[1:7]) == [1, 1, 1, 2, 2, 2] and order[0] == 0
    assert tokens[-1] == END


@pytest.mark.parametrize("smiles", [MOLECULES, SALTS])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_round_trip_is_exact_in_any_order(smiles, seed):
    schema, codec, graphs = setup(smiles)
    draw = torch.Generator().manual_seed(seed or 0)
    priority = in_order(graphs) if seed is None else torch.rand(graphs.mask.shape, generator=draw)
    tokens = codec.encode(graphs, priority)
    assert to_smiles(codec.decode(tokens).to_data_list(), schema) == [canonical_smiles(text) for text in smiles]
    # One token for each atom and each bond outside the tree, and the end.
    bonds, parts = (graphs.e > 0).sum((1, 2)) // 2, torch.tensor([text.count(".") + 1 for text in smiles])
    assert torch.equal((tokens != PAD).sum(1), bonds + parts + 1)


@pytest.mark.parametrize("smiles", [MOLECULES, SALTS])
def test_every_token_of_a_molecule_was_allowed(smiles):
    _, codec, graphs = setup(smiles)
    tokens = codec.encode(graphs, torch.rand(graphs.mask.shape, generator=torch.Generator().manual_seed(0)))
    grammar = Grammar(codec, len(tokens), tokens.shape[1] + 1, fragments=True)
    for token in tokens.T:
        assert grammar.allowed()[torch.arange(len(token)), token].all()
        grammar.advance(token)
    assert grammar.done.all() and not grammar.slots.any()


@pytest.mark.parametrize(("limit", "fragments"), [(81, False), (12, False), (30, True)])
def test_whatever_is_drawn_from_the_masks_is_a_molecule(limit, fragments):
    schema, codec, _ = setup([*MOLECULES, *SALTS])
    grammar, draw, columns = Grammar(codec, 300, limit, fragments), torch.Generator().manual_seed(1), []
    while not grammar.done.all():
        columns.append(torch.multinomial(grammar.allowed().float(), 1, generator=draw)[:, 0])
        grammar.advance(columns[-1])
    assert len(columns) <= limit
    written = to_smiles(codec.decode(torch.stack(columns, 1)).to_data_list(), schema)
    assert None not in written
    assert any("." in text for text in written) == fragments


def test_no_bond_is_written_twice():
    _, codec, _ = setup(["C1CCC1"])
    grammar, draw, columns = Grammar(codec, 500, 81), torch.Generator().manual_seed(2), []
    while not grammar.done.all():
        # As many ring closures as can be.
        allowed = grammar.allowed().float()
        allowed[:, codec.first_ring :] *= 100
        columns.append(torch.multinomial(allowed, 1, generator=draw)[:, 0])
        grammar.advance(columns[-1])
    for item in codec.decode(torch.stack(columns, 1)).to_data_list():
        pairs = item.edge_index.T.tolist()
        assert len({tuple(pair) for pair in pairs}) == len(pairs)
        assert all(one != other for one, other in pairs)


def test_without_single_bonds_children_keep_more_in_reserve():
    schema = {"max_nodes": 3, "atom_types": ["C", "O"], "bond_types": ["DOUBLE"]}
    codec = MoleculeTokens(schema, torch.tensor([4, 2]))
    assert codec.reserve == 2 and int(codec.children.max()) == 2
    grammar, draw, columns = Grammar(codec, 50, 7), torch.Generator().manual_seed(0), []
    while not grammar.done.all():
        columns.append(torch.multinomial(grammar.allowed().float(), 1, generator=draw)[:, 0])
        grammar.advance(columns[-1])
    assert None not in to_smiles(codec.decode(torch.stack(columns, 1)).to_data_list(), schema)
