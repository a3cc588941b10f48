from dataclasses import replace

import pytest

from search_spaces.architecture import Architecture
from search_spaces.blocks import ArchitectureError, Block, make_divisible
from search_spaces.references import FAMILIES, reference


@pytest.mark.parametrize("name", FAMILIES)
def test_yaml_round_trip(name: str) -> None:
    architecture = reference(name)
    again = Architecture.from_yaml(architecture.to_yaml())
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert again.id == architecture.id


def test_id_is_stable_across_releases() -> None:
    # Study folders and tables of accuracies name architectures by this id.
    assert reference("mobilenet_v3_large").id == "88bc0c85c1"


def test_id_depends_on_every_field() -> None:
    base = reference("mobilenet_v3_small")
    row = base.blocks[4]
    changed = [
        replace(base, resolution=192),
        replace(base, classes=10),
        replace(base, stem=replace(base.stem, activation="relu")),
        replace(base, head=replace(base.head, hidden_channels=512)),
        replace(base, blocks=(*base.blocks[:4], replace(row, se=not row.se), *base.blocks[5:])),
        replace(base, blocks=(*base.blocks[:4], replace(row, kernel=3), *base.blocks[5:])),
    ]
    assert len({base.id, *(each.id for each in changed)}) == len(changed) + 1


def test_broken_chain_names_the_row() -> None:
    base = reference("mobilenet_v2")
    blocks = list(base.blocks)
    blocks[6] = replace(blocks[6], in_channels=40, expanded_channels=240)
    with pytest.raises(ArchitectureError, match=r"row 7: takes 40 channels, but row 6 gives 32"):
        replace(base, blocks=tuple(blocks))
    with pytest.raises(ArchitectureError, match=r"row 1: .* the stem gives 32"):
        replace(base, blocks=base.blocks[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": 4}, "kernel must be an odd"),
        ({"stride": 3}, "stride must be 1 or 2"),
        ({"out_channels": 0}, "out_channels must be a positive integer"),
        ({"activation": "gelu"}, "activation must be one of relu, relu6, hswish"),
        ({"kind": "fused"}, "kind must be one of"),
        ({"expansion_conv": False}, "without an expansion convolution"),
        ({"se": "yes"}, "se must be true or false"),
    ],
)
def test_block_refuses_wrong_values(change: dict[str, object], message: str) -> None:
    fields = {"kind": "inverted_residual", "kernel": 3, "in_channels": 16, "expanded_channels": 64}
    with pytest.raises(ArchitectureError, match=message):
        Block(**{**fields, "out_channels": 24, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolution: 224", "'stem' is missing"),
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_from_yaml_refuses(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_yaml(text)


def test_unknown_field_in_a_row_is_named() -> None:
    text = reference("mobilenet_v3_small").to_yaml().replace("se: true", "squeeze: true", 1)
    with pytest.raises(ArchitectureError, match="row 1: block: unknown field 'squeeze'"):
        Architecture.from_yaml(text)


def test_markdown_prints_the_papers_rows() -> None:
    table = reference("mobilenet_v3_large").to_markdown().splitlines()
    # Howard et al. 2019, Table 1: rows 5 and 8 of the printed table.
    assert table[6] == "| 56² × 24 | bneck, 5×5 | 72 | 40 | ✓ | RE | 2 |"
    assert table[9] == "| 28² × 40 | bneck, 3×3 | 240 | 80 | – | HS | 2 |"
    assert len(table) == 2 + 1 + 15 + 4


def test_make_divisible_never_loses_a_tenth() -> None:
    for channels in range(1, 2000):
        rounded = make_divisible(channels * 0.75)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * channels * 0.75


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("resolution: 224", "resolution: 9223372036854775807", "resolution must be at most 8,192"),
        ("conv_layers: 1", "conv_layers: 99999999", "conv_layers must be at most 16"),
        ("channels: 16, activation", "channels: 10000000000, activation", "channels must be at most 65,536"),
        ("kernel: 5", "kernel: 1000000001", "at most 31"),
        ("classes: 1000", "classes: [1000]", "classes must be a positive integer"),
        ("kind: inverted_residual", "kind: [inverted_residual]", "kind must be one of"),
        ("activation: hswish", "activation: {a: b}", "activation must be one of"),
        ("blocks:", "blocks: 3\nrows:", "blocks must be a list|unknown field"),
    ],
)
def test_a_network_that_nobody_can_build_is_refused(old: str, new: str, reason: str) -> None:
    text = reference("mobilenet_v3_small").to_yaml()
    assert old in text
    with pytest.raises(ArchitectureError, match=reason) as caught:
        Architecture.from_yaml(text.replace(old, new, 1))
    assert len(str(caught.value)) <= 300


def test_a_network_of_a_million_rows_is_refused() -> None:
    table = reference("mobilenet_v3_small").to_dict()
    table["blocks"] = [table["blocks"][0]] * 1_000_000
    with pytest.raises(ArchitectureError, match="at most 500 rows"):
        Architecture.from_dict(table)
